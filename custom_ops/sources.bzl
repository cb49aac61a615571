"""The one list of C++ sources, read by Bazel (custom_ops/BUILD) and by Python (custom_ops/build.py).

Plain assignments of lists of strings only, so that the file is valid Starlark and valid Python.
Paths are relative to custom_ops/.
"""

KERNEL_HEADERS = [
    "kernels/avx2.h",
    "kernels/avx512.h",
    "kernels/codecs_body.h",
    "kernels/conv2d.h",
    "kernels/cpu.h",
    "kernels/decode_body.h",
    "kernels/epilogue.h",
    "kernels/float_kernel.h",
    "kernels/format.h",
    "kernels/fully_connected.h",
    "kernels/gemm.h",
    "kernels/kernels.h",
    "kernels/kernels.inc",
    "kernels/patches.h",
    "kernels/prefill_body.h",
    "kernels/product.h",
    "kernels/row.h",
    "kernels/row_body.h",
    "kernels/thread_pool.h",
    "kernels/unpack.h",
    "kernels/weights.h",
    "kernels/workspace.h",
]

KERNEL_SOURCES = [
    "kernels/avx2_gemm.cc",
    "kernels/avx2_row.cc",
    "kernels/avx512_decode.cc",
    "kernels/avx512_float.cc",
    "kernels/avx512_prefill.cc",
    "kernels/avx512_row.cc",
    "kernels/avx512bw_gemm.cc",
    "kernels/avxvnni_gemm.cc",
    "kernels/conv2d.cc",
    "kernels/cpu.cc",
    "kernels/epilogue.cc",
    "kernels/float32_product.cc",
    "kernels/format.cc",
    "kernels/fully_connected.cc",
    "kernels/kernels.cc",
    "kernels/patches.cc",
    "kernels/portable.cc",
    "kernels/product.cc",
    "kernels/thread_pool.cc",
    "kernels/unpack.cc",
]

TFLITE_HEADERS = [
    "tflite/delegate.h",
    "tflite/error_text.h",
    "tflite/export.h",
    "tflite/flexbuffer.h",
    "tflite/int_array.h",
    "tflite/op.h",
    "tflite/op_options.h",
    "tflite/ops.h",
    "tflite/register.h",
    "tflite/tensor_shape.h",
    "tflite/thread_pools.h",
]

TFLITE_SOURCES = [
    "tflite/conv2d.cc",
    "tflite/delegate.cc",
    "tflite/embedding_lookup.cc",
    "tflite/flexbuffer.cc",
    "tflite/fully_connected.cc",
    "tflite/op.cc",
    "tflite/op_options.cc",
    "tflite/ops.cc",
    "tflite/register.cc",
    "tflite/thread_pools.cc",
    "tflite/unpack.cc",
    "tflite/weight_tensors.cc",
]
