"""COCO: its configuration.

81 classes, 0 is background; index i is COCO's i-th smallest category id.
"""

from config import COCO_CATEGORIES, Config

############################################################
#  Configuration
############################################################


class CocoConfig(Config):
    """Mask Scoring R-CNN on COCO's 80 categories."""

    NAME = "coco"
    NUM_CLASSES = 1 + len(COCO_CATEGORIES)
    CLASS_NAMES = ("BG", *(COCO_CATEGORIES[category] for category in sorted(COCO_CATEGORIES)))
    CATEGORY_IDS = (0, *sorted(COCO_CATEGORIES))
