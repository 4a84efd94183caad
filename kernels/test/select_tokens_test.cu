// select_tokens against what it should copy, to the bit. --quick changes nothing: it is quick.

#include "select_tokens.cuh"

#include "check.h"

using namespace layerweave;

namespace {

struct Case {
  int64_t batch, tokens, selected, row_bytes;
  int64_t offset = 0;  // bytes by which x and y miss the alignment of device memory

  std::string name() const {
    return "B=" + std::to_string(batch) + " T=" + std::to_string(tokens) + " L=" + std::to_string(selected) + " bytes=" + std::to_string(row_bytes) + " offset=" + std::to_string(offset);
  }
};

void check(Tally& tally, const Case& test, std::mt19937_64& random) {
  std::vector<unsigned char> x(test.offset + test.batch * test.tokens * test.row_bytes);
  for (unsigned char& byte : x) byte = static_cast<unsigned char>(random());
  std::vector<int64_t> indices(test.batch * test.selected);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(random() % static_cast<uint64_t>(test.tokens));
  // Beyond both ends, for the first and the last row.
  indices.front() = -5;
  indices.back() = test.tokens + 3;
  const DeviceBuffer dx = upload(x), dindices = upload_values(indices);
  constexpr int64_t kGuard = 64;
  DeviceBuffer y(test.offset + indices.size() * test.row_bytes + kGuard);
  y.fill(0xee);
  SelectTokensParams params = {test.batch, test.tokens, test.selected, test.row_bytes, static_cast<const char*>(dx.data()) + test.offset,
                               static_cast<const int64_t*>(dindices.data()), static_cast<char*>(y.data()) + test.offset};
  CUDA_CHECK(select_tokens(params, nullptr));
  CUDA_CHECK(cudaDeviceSynchronize());
  std::vector<unsigned char> expected(test.offset, 0xee);
  for (size_t i = 0; i < indices.size(); ++i) {
    const int64_t token = std::clamp<int64_t>(indices[i], 0, test.tokens - 1);
    const auto from = x.begin() + test.offset + (static_cast<int64_t>(i) / test.selected * test.tokens + token) * test.row_bytes;
    expected.insert(expected.end(), from, from + test.row_bytes);
  }
  expected.insert(expected.end(), kGuard, 0xee);
  tally.record(test.name(), download(y) == expected ? "" : "differs");
  params.x = nullptr;
  tally.record(test.name() + " without x", select_tokens(params, nullptr) == cudaErrorInvalidValue ? "" : "was accepted");
}

}  // namespace

int main() {
  require_device("select_tokens_test");
  std::mt19937_64 random(1);
  Tally tally;
  for (const Case& test : {Case{1, 1, 1, 2}, Case{1, 1, 1, 8192}, Case{3, 7, 2, 80}, Case{3, 7, 5, 82}, Case{2, 300, 300, 1024}, Case{16, 1, 1, 8192}, Case{2, 5, 3, 64, 2}, Case{1, 9, 4, 100000}})
    check(tally, test, random);
  return tally.finish();
}
