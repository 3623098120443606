// Units of numbers as written, what they measure and their factor; kernels/number_words.py has the same.
#pragma once

#include <cstdint>

#include "checks.h"

namespace vstar {

enum Dimension { kNoDimension = -1, kTime, kCount, kShare, kPoints, kFrames, kAngle, kLength_, kMass };

struct Unit {
  const char* name;
  int dimension;
  double factor;  // to the dimension's base unit
};

constexpr int32_t kUnits = 48, kMetre = 41;

VSTAR_HD_CALL Unit unit_at(int32_t i) {
  const Unit kTable[kUnits] = {
      {"s", kTime, 1},
      {"sec", kTime, 1},
      {"secs", kTime, 1},
      {"second", kTime, 1},
      {"seconds", kTime, 1},
      {"ms", kTime, 1e-3},
      {"msec", kTime, 1e-3},
      {"millisecond", kTime, 1e-3},
      {"milliseconds", kTime, 1e-3},
      {"min", kTime, 60},
      {"mins", kTime, 60},
      {"minute", kTime, 60},
      {"minutes", kTime, 60},
      {"h", kTime, 3600},
      {"hr", kTime, 3600},
      {"hrs", kTime, 3600},
      {"hour", kTime, 3600},
      {"hours", kTime, 3600},
      {"time", kCount, 1},
      {"times", kCount, 1},
      {"x", kCount, 1},
      {"rep", kCount, 1},
      {"reps", kCount, 1},
      {"repetition", kCount, 1},
      {"repetitions", kCount, 1},
      {"%", kShare, 0.01},
      {"percent", kShare, 0.01},
      {"pct", kShare, 0.01},
      {"point", kPoints, 1},
      {"points", kPoints, 1},
      {"pt", kPoints, 1},
      {"pts", kPoints, 1},
      {"frame", kFrames, 1},
      {"frames", kFrames, 1},
      {"degree", kAngle, 1},
      {"degrees", kAngle, 1},
      {"deg", kAngle, 1},
      {"\u00b0", kAngle, 1},
      {"mm", kLength_, 1e-3},
      {"cm", kLength_, 1e-2},
      {"km", kLength_, 1e3},
      {"m", kLength_, 1},
      {"meter", kLength_, 1},
      {"meters", kLength_, 1},
      {"metre", kLength_, 1},
      {"metres", kLength_, 1},
      {"g", kMass, 1e-3},
      {"kg", kMass, 1},
  };
  return kTable[i];
}

}  // namespace vstar
