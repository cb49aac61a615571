// The only file that knows a class of TF Lite's C++ API.
//
// The class is reached by the name of one member function, weakly: the same library must load where
// no such function exists (the LiteRT wheel), and be of use where it comes from a library that is
// loaded later, or not for global use (the TensorFlow wheel).

#include "custom_ops/tflite/register.h"

#include <cstdio>
#include <type_traits>
#include <utility>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#include "custom_ops/tflite/ops.h"
#include "third_party/tflite/mutable_op_resolver.h"

using tfmot_ternary::AllOps;
using tfmot_ternary::kOpCount;
using tfmot_ternary::OpEntry;

// What is called below by name, as a type: checked against the class, ours or the real one.
static_assert(std::is_void_v<decltype(std::declval<tflite::MutableOpResolver&>().AddCustom(
                  "", static_cast<const TfLiteRegistration*>(nullptr), 1))>,
              "tflite::MutableOpResolver::AddCustom");

// The mangled name of tflite::MutableOpResolver::AddCustom(char const*, TfLiteRegistration const*,
// int), the same under the Itanium ABI on every platform. Its hidden first argument is `this`.
#define ADD_CUSTOM_SYMBOL _ZN6tflite17MutableOpResolver9AddCustomEPKcPK18TfLiteRegistrationi
#define STRINGIFY_EXPANDED(x) #x
#define STRINGIFY(x) STRINGIFY_EXPANDED(x)

extern "C" __attribute__((weak)) void ADD_CUSTOM_SYMBOL(tflite::MutableOpResolver* resolver,
                                                        const char* name,
                                                        const TfLiteRegistration* registration,
                                                        int version);

namespace {

using AddCustomFunction = void (*)(tflite::MutableOpResolver*, const char*,
                                   const TfLiteRegistration*, int);

AddCustomFunction FindAddCustom() {
  if (&ADD_CUSTOM_SYMBOL != nullptr) return &ADD_CUSTOM_SYMBOL;
#if !defined(_WIN32)
  constexpr char kSymbol[] = STRINGIFY(ADD_CUSTOM_SYMBOL);
  if (void* symbol = dlsym(RTLD_DEFAULT, kSymbol)) {
    return reinterpret_cast<AddCustomFunction>(symbol);
  }
  // Loaded without RTLD_GLOBAL: ask the libraries that are known to carry it, without loading them.
  for (const char* name : {"libtensorflow_cc.so.2", "libtensorflow-lite.so", "libtflite.so"}) {
    void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) continue;
    void* symbol = dlsym(library, kSymbol);
    dlclose(library);  // returns the reference; the library stays loaded by whoever loaded it
    if (symbol != nullptr) return reinterpret_cast<AddCustomFunction>(symbol);
  }
#endif
  return nullptr;
}

}  // namespace

extern "C" void TfmotTernaryRegisterOps(tflite::MutableOpResolver* resolver) {
  const AddCustomFunction add_custom = FindAddCustom();
  if (add_custom == nullptr) {
    std::fprintf(stderr,
                 "TfmotTernaryRegisterOps: expected tflite::MutableOpResolver::AddCustom in this "
                 "process, got none; use the external delegate instead\n");
    return;
  }
  const OpEntry* entries = AllOps();
  for (int i = 0; i < kOpCount; ++i) {
    add_custom(resolver, entries[i].op->name, &entries[i].registration, 1);
  }
}
