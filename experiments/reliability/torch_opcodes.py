"""Files of `torch.save` in pieces, opcode by opcode, for the fuzzer to put together wrongly."""

import io
import struct
import zipfile


def pickled_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


# A state dict of one 2x3 tensor, opcode by opcode, as torch writes it.
TORCH_PICKLE = (
    *(b"\x80\x02", b"}", b"(", pickled_text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n", b"(", b"("),
    *(pickled_text("storage"), b"ctorch\nFloatStorage\n", pickled_text("0"), pickled_text("cpu"), b"K\x06"),
    *(b"t", b"Q", b"K\x00", b"K\x02", b"K\x03", b"\x86", b"K\x03", b"K\x01", b"\x86", b"\x89"),
    *(b"ccollections\nOrderedDict\n", b")", b"R", b"t", b"R", b"u", b"."),
)
# The same in a whole module, a parameter of it.
TORCH_MODULE = (
    *(b"\x80\x02", b"ctheirs\nNet\n", b")", b"\x81", b"}", b"(", pickled_text("_parameters"), b"}", b"("),
    *(pickled_text("w"), b"ctorch._utils\n_rebuild_parameter\n", b"(", *TORCH_PICKLE[4:-2], b"\x88", b"}"),
    *(b"t", b"R", b"u", pickled_text("_buffers"), b"}", pickled_text("_modules"), b"}", b"u", b"b", b"."),
)
TORCH_OTHERS = (
    *(
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch\nuint16\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
    ),
    *(b"ctorch.storage\nUntypedStorage\n", b"ctorch\nQInt8Storage\n", b"ctorch.cuda\nFloatStorage\n"),
    *(pickled_text("module"), pickled_text("state_dict"), b"I12\n", b"\x96" + struct.pack("<Q", 1) + b"x"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ios\nsystem\n", b"ctorch\nSize\n", b"P0\n", b"q\x00"),
    *(b"h\x00", b"J\xff\xff\xff\xff", b"\x8a\x08" + 8 * b"\x7f", b"\x8b\xff\xff\xff\x7f", b"G" + 8 * b"\xff"),
    b"K\xff",
    *(bytes([opcode]) for opcode in b"\x93\x81\x92\x94\x97\x85\x8f\x90\x91b021]aeldsNoR}"),
)


def torch_zip(stream: bytes, storage: bytes = bytes(24)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", stream)
        archive.writestr("x/data/0", storage)
    return file.getvalue()
