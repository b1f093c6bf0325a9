"""How each family of foreign checkpoints names its tensors, and how to recognise the family."""

from dataclasses import dataclass

STYLES = ("caffe", "pytorch")


# In these tables "#" stands for a number and "@" for a letter (a is 0). Our name takes them over in their order, "#-1"
# less one. The part after the last dot (weight, bias, ...) is taken over too. A module's batch norm is called .norm.
# The first rule that matches counts.
Table = tuple[tuple[str, str], ...]

# fmt: off
_KERAS: Table = (
    ("conv1.",                  "backbone.stem."),
    ("bn_conv1.",               "backbone.stem.norm."),
    ("res#@_branch2@.",         "backbone.layer#-1.#.conv#+1."),
    ("bn#@_branch2@.",          "backbone.layer#-1.#.conv#+1.norm."),
    ("res#@_branch1.",          "backbone.layer#-1.#.shortcut."),
    ("bn#@_branch1.",           "backbone.layer#-1.#.shortcut.norm."),
    ("fpn_c#p#.",               "fpn.lateral.#-2."),
    ("fpn_p#.",                 "fpn.output.#-2."),
    ("rpn_conv_shared.",        "rpn.convs.0."),
    ("rpn_class_raw.",          "rpn.objectness."),
    ("rpn_bbox_pred.",          "rpn.deltas."),
    ("mrcnn_class_conv#.",      "box_head.fcs.#-1."),
    ("mrcnn_class_bn#.",        "box_head.fcs.#-1.norm."),
    ("mrcnn_class_logits.",     "box_head.class_logits."),
    ("mrcnn_bbox_fc.",          "box_head.box_deltas."),
    ("mrcnn_mask_conv#.",       "mask_head.convs.#-1."),
    ("mrcnn_mask_bn#.",         "mask_head.convs.#-1.norm."),
    ("mrcnn_mask_deconv.",      "mask_head.upsample."),
    ("mrcnn_mask.",             "mask_head.mask_logits."),
)
_PORT2018: Table = (
    ("fpn.C1.0.",               "backbone.stem."),
    ("fpn.C1.1.",               "backbone.stem.norm."),
    ("fpn.C#.#.conv#.",         "backbone.layer#-1.#.conv#."),
    ("fpn.C#.#.bn#.",           "backbone.layer#-1.#.conv#.norm."),
    ("fpn.C#.#.downsample.0.",  "backbone.layer#-1.#.shortcut."),
    ("fpn.C#.#.downsample.1.",  "backbone.layer#-1.#.shortcut.norm."),
    ("fpn.P#_conv1.",           "fpn.lateral.#-2."),
    ("fpn.P#_conv2.1.",         "fpn.output.#-2."),
    ("rpn.conv_shared.",        "rpn.convs.0."),
    ("rpn.conv_class.",         "rpn.objectness."),
    ("rpn.conv_bbox.",          "rpn.deltas."),
    ("classifier.conv#.",       "box_head.fcs.#-1."),
    ("classifier.bn#.",         "box_head.fcs.#-1.norm."),
    ("classifier.linear_class.", "box_head.class_logits."),
    ("classifier.linear_bbox.", "box_head.box_deltas."),
    ("mask.conv5.",             "mask_head.mask_logits."),
    ("mask.conv#.",             "mask_head.convs.#-1."),
    ("mask.bn#.",               "mask_head.convs.#-1.norm."),
    ("mask.deconv.",            "mask_head.upsample."),
)
_BENCHMARK: Table = (
    ("backbone.body.stem.conv1.",                 "backbone.stem."),
    ("backbone.body.stem.bn1.",                   "backbone.stem.norm."),
    ("backbone.body.layer#.#.conv#.",             "backbone.layer#.#.conv#."),
    ("backbone.body.layer#.#.bn#.",               "backbone.layer#.#.conv#.norm."),
    ("backbone.body.layer#.#.downsample.0.",      "backbone.layer#.#.shortcut."),
    ("backbone.body.layer#.#.downsample.1.",      "backbone.layer#.#.shortcut.norm."),
    ("backbone.fpn.fpn_inner#.",                  "fpn.lateral.#-1."),
    ("backbone.fpn.fpn_layer#.",                  "fpn.output.#-1."),
    ("rpn.head.conv.",                            "rpn.convs.0."),
    ("rpn.head.cls_logits.",                      "rpn.objectness."),
    ("rpn.head.bbox_pred.",                       "rpn.deltas."),
    ("roi_heads.box.feature_extractor.fc6.",      "box_head.fcs.0."),
    ("roi_heads.box.feature_extractor.fc7.",      "box_head.fcs.1."),
    ("roi_heads.box.predictor.cls_score.",        "box_head.class_logits."),
    ("roi_heads.box.predictor.bbox_pred.",        "box_head.box_deltas."),
    ("roi_heads.mask.feature_extractor.mask_fcn#.", "mask_head.convs.#-1."),
    ("roi_heads.mask.predictor.conv5_mask.",      "mask_head.upsample."),
    ("roi_heads.mask.predictor.mask_fcn_logits.", "mask_head.mask_logits."),
    ("roi_heads.maskiou.feature_extractor.maskiou_fcn#.", "maskiou_head.convs.#-1."),
    ("roi_heads.maskiou.feature_extractor.maskiou_fc#.",  "maskiou_head.fcs.#-1."),
    ("roi_heads.maskiou.predictor.maskiou.",      "maskiou_head.maskious."),
)
_MMDET: Table = (
    ("backbone.conv1.",                     "backbone.stem."),
    ("backbone.bn1.",                       "backbone.stem.norm."),
    ("backbone.layer#.#.conv#.",            "backbone.layer#.#.conv#."),
    ("backbone.layer#.#.bn#.",              "backbone.layer#.#.conv#.norm."),
    ("backbone.layer#.#.downsample.0.",     "backbone.layer#.#.shortcut."),
    ("backbone.layer#.#.downsample.1.",     "backbone.layer#.#.shortcut.norm."),
    ("neck.lateral_convs.#.conv.",          "fpn.lateral.#."),
    ("neck.fpn_convs.#.conv.",              "fpn.output.#."),
    ("rpn_head.rpn_conv.",                  "rpn.convs.0."),
    ("rpn_head.rpn_conv.#.conv.",           "rpn.convs.#."),
    ("rpn_head.rpn_cls.",                   "rpn.objectness."),
    ("rpn_head.rpn_reg.",                   "rpn.deltas."),
    ("roi_head.bbox_head.shared_convs.#.conv.", "box_head.convs.#."),
    ("roi_head.bbox_head.shared_fcs.#.",    "box_head.fcs.#."),
    ("roi_head.bbox_head.fc_cls.",          "box_head.class_logits."),
    ("roi_head.bbox_head.fc_reg.",          "box_head.box_deltas."),
    ("roi_head.mask_head.convs.#.conv.",    "mask_head.convs.#."),
    ("roi_head.mask_head.upsample.",        "mask_head.upsample."),
    ("roi_head.mask_head.conv_logits.",     "mask_head.mask_logits."),
    ("roi_head.mask_iou_head.convs.#.",     "maskiou_head.convs.#."),
    ("roi_head.mask_iou_head.fcs.#.",       "maskiou_head.fcs.#."),
    ("roi_head.mask_iou_head.fc_mask_iou.", "maskiou_head.maskious."),
)
_DETECTRON2: Table = (
    ("backbone.bottom_up.stem.conv1.",           "backbone.stem."),
    ("backbone.bottom_up.stem.conv1.norm.",      "backbone.stem.norm."),
    ("backbone.bottom_up.res#.#.conv#.",         "backbone.layer#-1.#.conv#."),
    ("backbone.bottom_up.res#.#.conv#.norm.",    "backbone.layer#-1.#.conv#.norm."),
    ("backbone.bottom_up.res#.#.shortcut.",      "backbone.layer#-1.#.shortcut."),
    ("backbone.bottom_up.res#.#.shortcut.norm.", "backbone.layer#-1.#.shortcut.norm."),
    ("backbone.fpn_lateral#.",                   "fpn.lateral.#-2."),
    ("backbone.fpn_lateral#.norm.",              "fpn.lateral.#-2.norm."),
    ("backbone.fpn_output#.",                    "fpn.output.#-2."),
    ("backbone.fpn_output#.norm.",               "fpn.output.#-2.norm."),
    ("proposal_generator.rpn_head.conv.",        "rpn.convs.0."),
    ("proposal_generator.rpn_head.conv.conv#.",  "rpn.convs.#."),  # more than one convolution
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.objectness."),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.deltas."),
    ("roi_heads.box_head.conv#.",                "box_head.convs.#-1."),
    ("roi_heads.box_head.conv#.norm.",           "box_head.convs.#-1.norm."),
    ("roi_heads.box_head.fc#.",                  "box_head.fcs.#-1."),
    ("roi_heads.box_predictor.cls_score.",       "box_head.class_logits."),
    ("roi_heads.box_predictor.bbox_pred.",       "box_head.box_deltas."),
    ("roi_heads.mask_head.mask_fcn#.",           "mask_head.convs.#-1."),
    ("roi_heads.mask_head.mask_fcn#.norm.",      "mask_head.convs.#-1.norm."),
    ("roi_heads.mask_head.deconv.",              "mask_head.upsample."),
    ("roi_heads.mask_head.predictor.",           "mask_head.mask_logits."),
)
_TORCHVISION: Table = (  # the published v1 file has the names of 2019; v2 and files of today have others
    ("backbone.body.conv1.",                "backbone.stem."),
    ("backbone.body.bn1.",                  "backbone.stem.norm."),
    ("backbone.body.layer#.#.conv#.",       "backbone.layer#.#.conv#."),
    ("backbone.body.layer#.#.bn#.",         "backbone.layer#.#.conv#.norm."),
    ("backbone.body.layer#.#.downsample.0.", "backbone.layer#.#.shortcut."),
    ("backbone.body.layer#.#.downsample.1.", "backbone.layer#.#.shortcut.norm."),
    ("backbone.fpn.inner_blocks.#.",        "fpn.lateral.#."),       # 2019
    ("backbone.fpn.inner_blocks.#.0.",      "fpn.lateral.#."),
    ("backbone.fpn.inner_blocks.#.1.",      "fpn.lateral.#.norm."),  # v2
    ("backbone.fpn.layer_blocks.#.",        "fpn.output.#."),        # 2019
    ("backbone.fpn.layer_blocks.#.0.",      "fpn.output.#."),
    ("backbone.fpn.layer_blocks.#.1.",      "fpn.output.#.norm."),   # v2
    ("rpn.head.conv.",                      "rpn.convs.0."),         # 2019
    ("rpn.head.conv.#.0.",                  "rpn.convs.#."),
    ("rpn.head.cls_logits.",                "rpn.objectness."),
    ("rpn.head.bbox_pred.",                 "rpn.deltas."),
    ("roi_heads.box_head.fc6.",             "box_head.fcs.0."),
    ("roi_heads.box_head.fc7.",             "box_head.fcs.1."),
    ("roi_heads.box_head.#.0.",             "box_head.convs.#."),      # v2
    ("roi_heads.box_head.#.1.",             "box_head.convs.#.norm."), # v2
    ("roi_heads.box_head.5.",               "box_head.fcs.0."),        # v2: after four convolutions and a flatten
    ("roi_heads.box_predictor.cls_score.",  "box_head.class_logits."),
    ("roi_heads.box_predictor.bbox_pred.",  "box_head.box_deltas."),
    ("roi_heads.mask_head.mask_fcn#.",      "mask_head.convs.#-1."),   # 2019
    ("roi_heads.mask_head.#.0.",            "mask_head.convs.#."),
    ("roi_heads.mask_head.#.1.",            "mask_head.convs.#.norm."), # v2
    ("roi_heads.mask_predictor.conv5_mask.", "mask_head.upsample."),
    ("roi_heads.mask_predictor.mask_fcn_logits.", "mask_head.mask_logits."),
)
_IMAGENET: Table = (
    ("conv1.",                  "backbone.stem."),
    ("bn1.",                    "backbone.stem.norm."),
    ("layer#.#.conv#.",         "backbone.layer#.#.conv#."),
    ("layer#.#.bn#.",           "backbone.layer#.#.conv#.norm."),
    ("layer#.#.downsample.0.",  "backbone.layer#.#.shortcut."),
    ("layer#.#.downsample.1.",  "backbone.layer#.#.shortcut.norm."),
)
_IMAGENET_DETECTRON2: Table = (
    ("stem.conv1.",             "backbone.stem."),
    ("stem.conv1.norm.",        "backbone.stem.norm."),
    ("res#.#.conv#.",           "backbone.layer#-1.#.conv#."),
    ("res#.#.conv#.norm.",      "backbone.layer#-1.#.conv#.norm."),
    ("res#.#.shortcut.",        "backbone.layer#-1.#.shortcut."),
    ("res#.#.shortcut.norm.",   "backbone.layer#-1.#.shortcut.norm."),
)
_IMAGENET_CAFFE2: Table = (  # the last part, which is taken over, is "_w" of a convolution, and what follows "bn_"
    ("conv1",                   "backbone.stem."),
    ("conv1_bn_",               "backbone.stem.norm."),
    ("res_conv1_bn_",           "backbone.stem.norm."),
    ("res#_#_branch2@",         "backbone.layer#-1.#.conv#+1."),
    ("res#_#_branch2@_bn_",     "backbone.layer#-1.#.conv#+1.norm."),
    ("res#_#_branch1",          "backbone.layer#-1.#.shortcut."),
    ("res#_#_branch1_bn_",      "backbone.layer#-1.#.shortcut.norm."),
)
# fmt: on


@dataclass(frozen=True)
class Format:
    """How one family of files names, orders and normalises its weights."""

    name: str
    title: str
    dialect: str
    signs: tuple[str, ...]  # the format is recognised by a name that begins with one of these
    table: Table
    eps: float  # of its batch norms
    dropped: tuple[str, ...] = ()  # names of tensors that are no weights, written as in the tables; "$": they end there
    style: str | None = None  # of its backbones, if all have the same
    normed: tuple[str, ...] = ()  # modules outside the backbone that must come with a batch norm
    pairs: bool = False  # objectness is a softmax over (background, foreground)
    xyxy: bool = False  # deltas are (dx, dy, dw, dh), and the first of a cell's anchors is the wide one
    background_last: bool = False  # and there is no row for it in deltas, masks and mask IoUs
    group_norms: bool = False  # norms without statistics are group norms, or frozen ones of statistics 0 and 1
    bgr: bool = False


_MATTERPORT = {
    "dialect": "matterport",
    "eps": 1e-3,
    "style": "caffe",
    "normed": ("box_head.fcs.", "mask_head.convs."),
    "pairs": True,
}
FORMATS = (
    Format(
        name="keras",
        title="Matterport's Mask R-CNN, Keras",
        signs=("mrcnn_", "rpn_conv_shared."),
        table=_KERAS,
        dropped=("anchors.",),
        **_MATTERPORT,
    ),
    Format(
        name="port2018",
        title="the 2018 PyTorch port of Matterport's Mask R-CNN",
        signs=("fpn.C1.", "classifier.linear_class."),
        table=_PORT2018,
        **_MATTERPORT,
    ),
    Format(
        name="benchmark",
        title="the paper's code, or maskrcnn-benchmark",
        dialect="benchmark",
        signs=("backbone.body.stem.", "roi_heads.box.feature_extractor.", "roi_heads.maskiou."),
        table=_BENCHMARK,
        eps=0.0,
        dropped=("rpn.anchor_generator.cell_anchors.",),
        xyxy=True,
        bgr=True,
    ),
    Format(
        name="mmdet",
        title="mmdetection 2 or 3",
        dialect="mmdet",
        signs=("roi_head.bbox_head.", "roi_head.mask_head."),
        table=_MMDET,
        eps=1e-5,
        dropped=("data_preprocessor.",),
        xyxy=True,
        background_last=True,
    ),
    Format(  # before torchvision, whose names of the box head are the same
        name="detectron2",
        title="Detectron2",
        dialect="detectron2",
        signs=("backbone.bottom_up.", "backbone.fpn_lateral", "proposal_generator."),
        table=_DETECTRON2,
        eps=1e-5,
        dropped=(
            *("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors."),  # constants.py
            "sem_seg_head.",  # of panoptic models; their instances do not depend on it
        ),
        xyxy=True,
        background_last=True,
        group_norms=True,
        bgr=True,
    ),
    Format(
        name="torchvision",
        title="torchvision's Mask R-CNN",
        dialect="torchvision",
        signs=("roi_heads.box_predictor.", "roi_heads.mask_predictor."),
        table=_TORCHVISION,
        eps=0.0,  # 1e-5 where batch norms count batches: _eps
        style="pytorch",
        xyxy=True,
    ),
    Format(
        name="imagenet",
        title="an ImageNet classifier",
        dialect="mmdet",
        signs=("layer1.0.",),
        table=_IMAGENET,
        eps=1e-5,
        dropped=("fc.", "conv1.bias"),  # the latter in Caffe's; mmdetection leaves it out, too
    ),
    Format(
        name="imagenet",
        title="an ImageNet classifier with Detectron2's names",
        dialect="mmdet",
        signs=("res2.0.conv1.",),
        table=_IMAGENET_DETECTRON2,
        eps=1e-5,
        dropped=("stem.fc.", "fc.", "linear."),
        group_norms=True,
    ),
    Format(
        name="imagenet",
        title="an ImageNet classifier with Caffe2's names, as Detectron and Detectron2 publish",
        dialect="mmdet",
        signs=("res2_0_branch2a_",),
        table=_IMAGENET_CAFFE2,
        eps=1e-5,
        dropped=(  # Detectron and Detectron2 leave biases of convolutions out, too
            *("conv1_b$", "res#_#_branch2@_b$", "res#_#_branch1_b$"),
            *("fc1000_", "pred_", "fc_", "last_out_", "linear_"),
        ),
        group_norms=True,
        bgr=True,
    ),
)

LEAVES = {
    **{leaf: leaf for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "_w": "weight",
    "s": "weight",
    "b": "bias",
    "rm": "running_mean",
    "riv": "running_var",
}
NORM = ("weight", "bias", "running_mean", "running_var")
