"""What kind of file is this? Told by its content, never by its name."""

from __future__ import annotations

import re

from unbackdoor.errors import CheckpointError

_SAVE = "save its weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
CONVERT = f"load it where you trust it and {_SAVE}"
REBUILD = f"rebuild the network in PyTorch and {_SAVE}"

_PICKLE = "it is a Python pickle, which runs code when it is opened; "
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"

# Starts of files that are refused, with the reason; the first that fits counts.
_REFUSED: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), reason)
    for pattern, reason in (
        (
            re.escape(_LEGACY_MAGIC),
            f"it is a legacy PyTorch file (before 1.6), pickles that run code when opened; {CONVERT}",
        ),
        (
            rb"\x80[\x00-\x05].{0,4096}joblib",
            f"it is a joblib file, a pickle that runs code when opened; {CONVERT}",
        ),
        (rb"\x80[\x00-\x05]", _PICKLE + CONVERT),
        # Protocols 0 and 1 are text: a global, or a mark before a list, tuple or dictionary.
        (rb"c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n|\([cdlti(]|[\]}][q(.]", _PICKLE + CONVERT),
        (
            rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|\x78[\x01\x5e\x9c\xda]|\x04\x22\x4d\x18|7z\xbc\xaf|Rar!",
            "it is a compressed file (joblib also writes such files); unpack it, and if it holds a pickle, " + CONVERT,
        ),
        (
            rb"\x89HDF\r\n\x1a\n",
            f"it is an HDF5 file (Keras), not a PyTorch model; {REBUILD}",
        ),
        (rb"\x93NUMPY", f"it is a NumPy array (npy), not a model; {CONVERT}"),
        (
            rb"GGUF|ggjt|ggml",
            f"it is a GGUF file for language models; not an image classifier; {REBUILD}",
        ),
        (rb".{4}TFL3", f"it is a TensorFlow Lite model; {REBUILD}"),
        (
            rb"\x08[\x01-\x14](?:\x12|\x1a|\x22|\x3a|\x42)",
            f"it is an ONNX model, a graph without PyTorch weights; {REBUILD}",
        ),
        (
            rb".{257}ustar",
            f"it is a tar archive (also used by PyTorch before 0.4); unpack it, then {CONVERT}",
        ),
        (
            rb"version https://git-lfs",
            "it is a Git LFS pointer of a few lines, not the model itself; fetch it with 'git lfs pull'",
        ),
        (rb"\s*<", "it is a web page or XML, not a model; the download went wrong, get the file itself"),
    )
)


def sniff(data: bytes) -> str:
    """Return "safetensors" or "zip".

    Raises:
        CheckpointError: any other kind of file; the message names it, the reason, and how to convert.
    """
    if not data:
        raise CheckpointError("it is empty; copy or download it again")
    # Eight bytes of header length, at most some megabytes, then JSON: no other format starts like this.
    if data[8:9] == b"{" and data[4:8] == b"\0\0\0\0":
        return "safetensors"
    if data.startswith(b"PK\x03\x04"):
        return "zip"
    start = data[:8192]
    for pattern, reason in _REFUSED:
        if pattern.match(start):
            raise CheckpointError(reason)
    if _is_text(start):
        raise CheckpointError("it is a text file, not a model; name a safetensors file or a PyTorch zip file")
    raise CheckpointError(f"its format is not known (damaged, or no PyTorch model); {CONVERT}")


def _is_text(start: bytes) -> bool:
    """Return whether `start` is printable UTF-8 (its last character may be cut)."""
    text = start.decode("utf-8", errors="replace").rstrip("\N{REPLACEMENT CHARACTER}")
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)
