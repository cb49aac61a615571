// The peak of int8 dot products.
#ifndef TFMOT_TERNARY_BENCHMARKS_DOT_PEAK_H_
#define TFMOT_TERNARY_BENCHMARKS_DOT_PEAK_H_

namespace tfmot_ternary {

// GOPS, 2 for each multiply-accumulate, of the instruction `kind`; negative where this CPU lacks
// it.
double DotGops(const char* kind, int threads, double seconds);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_BENCHMARKS_DOT_PEAK_H_
