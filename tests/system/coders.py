"""Content codings for origins: gzip and deflate by Python, br and zstd by the libraries that the
service itself is built with."""
import ctypes
import gzip as _gzip
import zlib

_libraries = {}


def _library(name):
    if name not in _libraries:
        _libraries[name] = ctypes.CDLL(name)
    return _libraries[name]


def gzip(data):
    return _gzip.compress(data, 9, mtime=0)


def deflate(data):
    return zlib.compress(data, 9)


def bare(data):
    """deflate without zlib's frame, as some servers send it."""
    pack = zlib.compressobj(9, wbits=-15)
    return pack.compress(data) + pack.flush()


def br(data, quality=5, window=22):
    lib = _library("libbrotlienc.so.1")
    out = ctypes.create_string_buffer(len(data) + 1024)
    size = ctypes.c_size_t(len(out))
    done = lib.BrotliEncoderCompress(quality, window, 0, ctypes.c_size_t(len(data)), data,
                                     ctypes.byref(size), out)
    assert done == 1
    return out.raw[:size.value]


def zstd(data, level=3, window=None):
    lib = _library("libzstd.so.1")
    lib.ZSTD_compressBound.restype = lib.ZSTD_compress2.restype = ctypes.c_size_t
    lib.ZSTD_createCCtx.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.ZSTD_createCCtx())
    lib.ZSTD_CCtx_setParameter(context, 100, level)
    lib.ZSTD_CCtx_setParameter(context, 201, 1)  # a checksum
    if window:
        lib.ZSTD_CCtx_setParameter(context, 200, 0)  # no content size: a window is stated
    out = ctypes.create_string_buffer(lib.ZSTD_compressBound(ctypes.c_size_t(len(data))) + 64)
    size = lib.ZSTD_compress2(context, out, ctypes.c_size_t(len(out)), data,
                              ctypes.c_size_t(len(data)))
    lib.ZSTD_freeCCtx(context)
    assert size <= len(out)
    frame = bytearray(out.raw[:size])
    if window:
        assert not frame[4] & 0x20
        frame[5] = window - 10 << 3  # RFC 8878 3.1.1.1.2
    return bytes(frame)


CODERS = {"gzip": gzip, "deflate": deflate, "br": br, "zstd": zstd}
