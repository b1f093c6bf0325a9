"""What the tests of serve.py share: a model that takes no time, a server in threads, raw requests, a stub of ONNX
Runtime.
"""

import contextlib
import io
import json
import socket
import threading

import numpy as np
from PIL import Image

import serve
import utils
from data.images import read_image_bytes

NASTY = ('<img src=x onerror="document.title=1">', "</script><b>bold</b>", "zelle & 日本")


def made_model(masks: dict[str, np.ndarray], hold: threading.Event | None = None, ious: bool = True) -> serve.Model:
    """A model that finds the same in each picture. masks: {class: bool [H, W]}, the best first. hold: it waits for it
    in each picture.
    """
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(dict.fromkeys(masks))]
    ids = {category["name"]: category["id"] for category in categories}

    def detect(pixels: np.ndarray) -> list[dict]:
        if hold is not None:
            assert hold.wait(20)
        entries = []
        for i, (name, mask) in enumerate(masks.items()):
            y1, x1, y2, x2 = utils.rle_to_bbox(utils.mask_to_rle(mask))
            score, iou = 0.95 - 0.15 * i, 0.9 - 0.2 * (i % 3)
            entries.append({
                "image_id": 1, "category_id": ids[name], "segmentation": utils.rle_to_json(utils.mask_to_rle(mask)),
                "score": score * iou if ious else score, "class_score": score, "mask_iou": iou if ious else None,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            })  # fmt: skip
        return entries

    return serve.Model("made", categories, lambda data, name: read_image_bytes(data, name, 10**6), detect)


@contextlib.contextmanager
def serving(model: serve.Model, queue: int = 8, max_bytes: int = 1 << 20, host: str = "127.0.0.1"):
    """A running serve.Server on a free port."""
    server = serve.Server(host, 0, queue, max_bytes)
    server.model = model
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.end()


def png(height: int = 40, width: int = 60, seed: int = 0) -> bytes:
    """A picture of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def request(method: str, path: str, body: bytes | None = None, **headers: str | None) -> bytes:
    """The bytes of a request. headers: further ones, with _ for -; None leaves one out that is there by default."""
    lines = {"Host": "127.0.0.1"} | ({} if body is None else {"Content-Length": str(len(body))})
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + (body or b"")


def talk(server: serve.Server, data: bytes, ends: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to bytes; 0 if there is none. ends: say that no more bytes come."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        return parsed(received(connection))


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, {}, b""
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """The status and the sentence of an error."""
    status, headers, body = answer
    assert headers["Content-Type"] == "application/json"
    value = json.loads(body)
    assert list(value) == ["error"]
    return status, value["error"]


def form(name: str, content: bytes, boundary: str = "xyz", field: str = "image") -> bytes:
    """A multipart form with a text field and a file."""
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n--{boundary}\r\n'
        f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    ).encode() + content + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip


############################################################
#  A stub of ONNX Runtime
############################################################

# What export.py writes into the metadata of a file.
SETTINGS = {
    "format": 1, "dialect": "mmdet", "resize_mode": "shorter", "size_rounding": "half_up", "resampling": "opencv",
    "min_dim": 64, "max_dim": 128, "min_scale": 0, "divisor": 32, "channels": 3, "mean": [0, 0, 0], "std": [1, 1, 1],
    "pads_before_mean": False, "bit_depth": "auto", "pixel_range": "depth", "coordinates": "half_open",
    "clips_result": False, "paste": "centres", "clamps_mask_iou": False, "min_score": 0.05, "max_detections": 100,
    "score_threshold": 0.5, "class_names": ["BG", "cat", "dog"], "category_ids": [0, 17, 18],
}  # fmt: skip
# A module onnxruntime that finds one dog in the first quarter of every picture.
STUB = f"""
import json
import numpy as np

class SessionOptions:
    pass

class Node:
    def __init__(self, name, shape):
        self.name, self.shape = name, shape

class InferenceSession:
    def __init__(self, *arguments, **options):
        self.custom_metadata_map = {{"maskscoring": {json.dumps(json.dumps(SETTINGS))}}}

    def get_modelmeta(self):
        return self

    def get_inputs(self):
        return [Node("pixels", ["B", 3, "H", "W"]), Node("windows", ["B", 4])]

    def get_outputs(self):
        names = ("boxes", "batch_index", "class_ids", "scores", "mask_probs", "mask_ious")
        return [Node(name, ["N"]) for name in names]

    def run(self, names, inputs):
        height, width = inputs["pixels"].shape[2:]
        values = {{
            "boxes": np.float32([[0, 0, height / 2, width / 2]]), "batch_index": np.int64([0]),
            "class_ids": np.int64([2]), "scores": np.float32([0.75]), "mask_probs": np.ones((1, 28, 28), np.float32),
            "mask_ious": np.float32([0.5]),
        }}
        return [values[name] for name in names]
"""


def write_stub(folder) -> None:
    """A file onnxruntime.py, and a model.onnx for it."""
    (folder / "onnxruntime.py").write_text(STUB)
    (folder / "model.onnx").write_bytes(b"stub")
