// One thread pool for each interpreter.
#ifndef TFMOT_TERNARY_TFLITE_THREAD_POOLS_H_
#define TFMOT_TERNARY_TFLITE_THREAD_POOLS_H_

#include <memory>

#include "custom_ops/kernels/thread_pool.h"
#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

// What tells interpreters apart: the same for the contexts of all subgraphs of an interpreter, and
// for as long as one of its ops lives no other interpreter's.
const void* InterpreterIdentity(TfLiteContext* context);

// The pool of `num_threads` threads of the interpreter that `context` belongs to; null for one
// thread or fewer, where no pool is needed. All ops of an interpreter, in all of its subgraphs, get
// the same pool; it ends with the last of them. Any thread may call this.
std::shared_ptr<ThreadPool> AcquireThreadPool(TfLiteContext* context, int num_threads);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_THREAD_POOLS_H_
