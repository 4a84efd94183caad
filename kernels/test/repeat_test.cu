// The same inputs, thousands of launches of linear_packed's tiles: every launch must give the first one's bits. --quick for the sanitizer.

#include <array>

#include "linear_packed.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Difference {
  unsigned count;
  int64_t at;
};

__global__ void compare(const uint16_t* y, const uint16_t* want, int64_t elements, Difference* found) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < elements; i += int64_t{gridDim.x} * blockDim.x)
    if (y[i] != want[i] && atomicAdd(&found->count, 1u) == 0) found->at = i;
}

void check(Tally& tally, const std::array<int64_t, 3>& sizes, DType dtype, PackedType type, int launches, DeviceBuffer& flush, std::mt19937_64& random) {
  const auto [tokens, rows, columns] = sizes;
  const bool int8 = type == PackedType::kInt8;
  std::vector<unsigned char> packed(packed_elements(rows, columns) * (int8 ? 1 : 2));
  if (int8)
    for (unsigned char& code : packed) code = static_cast<unsigned char>(random() % 255 - 127);
  else
    packed = encode(random_values(random, packed_elements(rows, columns), dtype, 0.f, 1.f / std::sqrt(static_cast<float>(columns))), dtype);
  const DeviceBuffer x = upload(encode(random_values(random, tokens * columns, dtype, 0.f, 1.f), dtype)), weight = upload(packed);
  const DeviceBuffer scale = upload_values(std::vector<float>(packed_panels(rows) * kPanelRows, 3e-4f));
  LinearPackedParams params{};
  params.tokens = tokens, params.rows = params.y_row_stride = rows, params.columns = params.x_row_stride = columns, params.weights = type;
  DeviceBuffer want(tokens * rows * 2), y(tokens * rows * 2), workspace(linear_packed_workspace(params)), arrivals(linear_packed_arrivals(params) * 4), found(sizeof(Difference));
  arrivals.fill(0), found.fill(0);
  params.weight = weight.data(), params.x = x.data(), params.workspace = workspace.data();
  params.scale = int8 ? static_cast<const float*>(scale.data()) : nullptr;
  params.arrivals = static_cast<uint32_t*>(arrivals.data());
  for (int launch = 0; launch <= launches; ++launch) {
    // Now and then the weights come from memory and not from L2.
    if (launch % 8 == 0) flush.fill(launch);
    params.y = launch == 0 ? want.data() : y.data();
    y.fill(0xff), workspace.fill(0xff);
    CUDA_CHECK(linear_packed(params, dtype, nullptr));
    if (launch > 0) compare<<<64, 256>>>(static_cast<const uint16_t*>(y.data()), static_cast<const uint16_t*>(want.data()), tokens * rows, static_cast<Difference*>(found.data()));
  }
  CUDA_CHECK(cudaDeviceSynchronize());
  Difference difference;
  std::memcpy(&difference, download(found).data(), sizeof difference);
  tally.record(std::string(name_of(dtype)) + (int8 ? " int8" : " 16-bit") + " M=" + std::to_string(tokens) + " N=" + std::to_string(rows) + " K=" + std::to_string(columns),
               difference.count == 0 ? "" : std::to_string(difference.count) + " elements differ in " + std::to_string(launches) + " launches, one at token " + std::to_string(difference.at / rows) + ", row " + std::to_string(difference.at % rows));
}

}  // namespace

int main(int argc, char** argv) {
  require_device("repeat_test");
  const bool quick = argc > 1 && std::string(argv[1]) == "--quick";
  std::mt19937_64 random(std::random_device{}());
  Tally tally;
  DeviceBuffer flush(size_t{96} << 20);
  for (const auto& sizes : {std::array<int64_t, 3>{129, 288, 1544}, {17, 104, 1032}, {129, 544, 1544}, {300, 288, 4096}, {65, 64, 1544}})
    for (DType dtype : {DType::kFloat16, DType::kBFloat16})
      for (PackedType type : {PackedType::k16Bit, PackedType::kInt8}) check(tally, sizes, dtype, type, quick ? 4 : 3000, flush, random);
  return tally.finish();
}
