// Accuracy of the vector functions against float64, in units in the last place.
#include <algorithm>
#include <cstring>
#include <limits>

#include "check.h"
#include "kernels.h"

using namespace layerweave::cpu;

namespace {

double unit_in_last_place(double x) { return std::ldexp(1.0, std::max(-126, std::ilogb(x)) - 23); }

template <class Reference>
std::string check(void (*function)(const float*, float*, int64_t), Reference reference, float from, float to, double ulps, double floor) {
  std::vector<float> x;
  for (int64_t i = 0; i <= 200001; ++i) x.push_back(from + static_cast<float>(i) / 200001 * (to - from));
  for (float edge : {0.0f, -0.0f, 1e-30f, -1e-30f, from, to})
    if (edge >= from && edge <= to) x.push_back(edge);
  std::vector<float> y(x.size());
  function(x.data(), y.data(), static_cast<int64_t>(x.size()));
  WorstError worst;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = reference(static_cast<double>(x[i]));
    worst.add(static_cast<int64_t>(i), y[i], want, ulps * unit_in_last_place(want) + floor);
  }
  return worst.ratio > 1 ? "x = " + std::to_string(x[static_cast<size_t>(worst.index)]) + ": " + worst.failure("y") : "";
}

}  // namespace

int main() {
  Tally tally;
  for (Isa isa : testable_isas()) {
    const KernelTable& k = kernel_table(isa);
    const std::string on = std::string(" on ") + isa_name(isa);
    tally.record("exp" + on, check(k.exp, [](double x) { return std::exp(x); }, -87.0f, 87.0f, 4, 0));
    tally.record("exp2" + on, check(k.exp2, [](double x) { return std::exp2(x); }, -126.0f, 126.0f, 3, 0));
    tally.record("softplus" + on, check(k.softplus, softplus, -87.0f, 200.0f, 8, 0));
    tally.record("silu" + on, check(k.silu, silu, -80.0f, 200.0f, 6, 0));

    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const float edges[] = {0.0f, -infinity, -1e9f, nan, 1e9f};
    float y[5];
    const float small[] = {0.0f, -1e9f, -1e30f, nan};
    k.exp2(small, y, 4);
    tally.record("exp2 of edges" + on, y[0] == 1 && y[1] >= 0 && y[1] <= 0x1p-126f && y[2] >= 0 && y[2] <= 0x1p-126f && std::isnan(y[3]) ? "" : "unexpected");
    k.exp(edges, y, 5);
    tally.record("exp of edges" + on, y[0] == 1 && y[1] >= 0 && y[1] < 1.2e-38f && y[2] < 1.2e-38f && std::isnan(y[3]) && y[4] > 1e37f ? "" : "unexpected");
    k.softplus(edges, y, 5);
    tally.record("softplus of edges" + on, y[1] >= 0 && y[1] < 1e-37f && std::isnan(y[3]) && y[4] == 1e9f ? "" : "unexpected");
    k.silu(edges, y, 5);
    tally.record("silu of edges" + on, y[0] == 0 && std::abs(y[2]) < 1e-27f && std::isnan(y[3]) && y[4] == 1e9f ? "" : "unexpected");
  }
  return tally.finish();
}
