"""Pickles as Python 2 writes them (protocol 2), which Python 3 cannot: strings are of bytes, names are the old ones."""

import struct

import numpy as np


def dumps(content: object) -> bytes:
    """A dict, list, str, int or array, opcode by opcode as in the files of CIFAR-10."""
    return b"\x80\x02" + _opcodes(content) + b"."


def _opcodes(content: object) -> bytes:
    match content:
        case dict():
            return b"}(" + b"".join(_opcodes(key) + _opcodes(value) for key, value in content.items()) + b"u"
        case list():
            return b"](" + b"".join(map(_opcodes, content)) + b"e"
        case str() | bytes():
            text = content if isinstance(content, bytes) else content.encode()
            return b"T" + struct.pack("<i", len(text)) + text
        case int():
            return b"J" + struct.pack("<i", content)
        case np.ndarray():
            made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            shape = b"(" + b"".join(_opcodes(length) for length in content.shape) + b"t"
            code = content.dtype.str[1:]
            order = _opcodes(content.dtype.str[0])
            dtype = b"cnumpy\ndtype\n" + _opcodes(code) + b"K\x00K\x01\x87R(K\x03" + order + b"NNN"
            dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            return made + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(content.tobytes()) + b"tb"
    raise TypeError(type(content))
