#include "runtime/refine/trained_linear.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/vptq_linear/byte_book.h"
#include "kernels/vptq_linear/vptq_codes.h"

namespace thinwire {
namespace {

// Rows of vectors are summed in so many runs, then the runs.
constexpr int64_t kRuns = 16;

// What a number without any size may be moved by.
constexpr float kSmallestUnit = 1e-3f;

std::vector<float> Values(const Tensor& tensor) {
  if (tensor.empty()) return {};
  const ConstTensorView view = tensor.view();
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  ConvertToFloat(view.raw(), view.dtype(), values.data(), view.num_elements());
  return values;
}

// Adds a book whose vectors lie VptqStride apart.
void AppendBook(const Tensor& book, int length, Parameter& parameter) {
  const std::vector<float> padded = Values(book);
  const int64_t stride = VptqStride(length);
  for (size_t first = 0; first < padded.size(); first += static_cast<size_t>(stride)) {
    const auto begin = padded.begin() + static_cast<std::ptrdiff_t>(first);
    parameter.value.insert(parameter.value.end(), begin, begin + length);
  }
}

void SetCommonUnit(Parameter& parameter) {
  double squares = 0.0;
  for (const float value : parameter.value) squares += double{value} * value;
  const double mean = squares / static_cast<double>(std::max<size_t>(1, parameter.value.size()));
  parameter.unit.assign(parameter.value.size(),
                        std::max(kSmallestUnit, static_cast<float>(std::sqrt(mean))));
}

}  // namespace

TrainedLinear::TrainedLinear(absl::string_view name, LinearWeights weights,
                             const VptqLayerConfig* config, bool byte_books)
    : weights_(std::move(weights)), byte_books_(byte_books) {
  const auto tensor = [&](absl::string_view part) { return absl::StrCat(name, ".", part); };
  bias_.tensor = tensor("bias");
  bias_.value = Values(weights_.bias);
  SetCommonUnit(bias_);
  if (config == nullptr) return;
  const VptqWeights& vptq = *weights_.vptq;
  has_outliers_ = config->outlier_size > 0;
  book_.tensor = tensor("centroids.weight");
  residual_.tensor = tensor("res_centroids.weight");
  outlier_book_.tensor = tensor("outlier_centroids.weight");
  scale_.tensor = tensor("weight_scale");
  offset_.tensor = tensor("weight_bias");
  for (size_t p = 0; p < vptq.parts().size(); ++p) {
    const VptqPart& part = vptq.parts()[p];
    for (const VptqGroup& group : part.groups) {
      AppendBook(group.centroids, part.length, IsOutliers(p) ? outlier_book_ : book_);
      if (!group.residual.empty()) AppendBook(group.residual, part.length, residual_);
    }
  }
  for (Parameter* parameter : {&book_, &residual_, &outlier_book_}) SetCommonUnit(*parameter);
  const int64_t in = vptq.in_features();
  for (const auto& [from, to] :
       {std::pair(vptq.scale(), &scale_), std::pair(vptq.offset(), &offset_)}) {
    if (from.empty()) continue;
    to->value.resize(static_cast<size_t>(in));
    for (int64_t p = 0; p < in; ++p) {
      to->value[vptq.order().empty() ? p : vptq.order()[p]] = from[p];
    }
  }
  // Also of the offset, which may be anything, 0 too: it is added to multiples of the scale.
  for (Parameter* parameter : {&scale_, &offset_}) {
    for (size_t c = 0; c < parameter->value.size(); ++c) {
      parameter->unit.push_back(scale_.empty() ? 1.0f : std::abs(scale_.value[c]));
    }
  }
}

TrainedLinear::Books TrainedLinear::ShownBooks() const {
  Books books = {book_.value, residual_.value, outlier_book_.value};
  if (!byte_books_) return books;
  const absl::Span<const VptqPart> parts = weights_.vptq->parts();
  // The groups' books lie one behind the other. What is not finite makes the loss so, or is found
  // when it is written.
  const auto round = [](const VptqPart& part, std::vector<float>& values) {
    if (!std::all_of(values.begin(), values.end(),
                     [](float value) { return std::isfinite(value); })) {
      return;
    }
    const size_t size = values.size() / part.groups.size();
    for (size_t first = 0; first < values.size(); first += size) {
      const std::vector<float> rounded =
          RoundToByteBook(absl::MakeConstSpan(values).subspan(first, size), part.length,
                          /*weights=*/{}, DType::kF16)
              .Values();
      std::copy(rounded.begin(), rounded.end(),
                values.begin() + static_cast<std::ptrdiff_t>(first));
    }
  };
  round(parts.back(), books.main);
  if (!books.residual.empty()) round(parts.back(), books.residual);
  if (has_outliers_) round(parts.front(), books.outliers);
  return books;
}

void TrainedLinear::RoundBooks() {
  if (!weights_.vptq.has_value()) return;
  Books books = ShownBooks();
  book_.value = std::move(books.main);
  residual_.value = std::move(books.residual);
  outlier_book_.value = std::move(books.outliers);
}

template <typename Body>
void TrainedLinear::ForVectors(size_t part, Range rows, const Body& body) const {
  const VptqWeights& vptq = *weights_.vptq;
  const VptqPart& from = vptq.parts()[part];
  int64_t first_position = 0;
  for (size_t p = 0; p < part; ++p) first_position += vptq.parts()[p].num_columns();
  const int length = from.length;
  const int64_t book_size = (int64_t{1} << from.index_bits) * length;
  const int64_t residual_size = (int64_t{1} << from.residual_bits) * length;
  for (size_t g = 0; g < from.groups.size(); ++g) {
    const VptqGroup& group = from.groups[g];
    const int bits = from.code_bits(group);
    const bool residual = !group.residual.empty();
    const int64_t row_bytes = VptqRowBytes(group.num_columns, bits);
    const auto* const codes = group.codes.view().data<uint8_t>();
    const auto number = static_cast<int64_t>(g);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for (int64_t j = 0; j < group.num_columns; ++j) {
        const uint64_t code = VptqCodeAt(codes + row * row_bytes, j * bits);
        const int64_t main = number * book_size + VptqField(code, 0, from.index_bits) * length;
        const int64_t more = residual
                                 ? number * residual_size +
                                       VptqField(code, from.index_bits, from.residual_bits) * length
                                 : -1;
        const int64_t position = first_position + j;
        body(vptq.order().empty() ? position : vptq.order()[position], row * length - from.skip,
             main, more);
      }
    }
    first_position += group.num_columns;
  }
}

template <typename Body>
void TrainedLinear::ForRuns(ThreadPool& pool, const Body& body) const {
  const VptqWeights& vptq = *weights_.vptq;
  pool.ParallelForDynamic(kRuns, [&](int64_t run) {
    for (size_t part = 0; part < vptq.parts().size(); ++part) {
      const int64_t rows = vptq.parts()[part].num_vectors(vptq.out_features());
      body(part, Range{rows * run / kRuns, rows * (run + 1) / kRuns}, static_cast<size_t>(run));
    }
  });
}

void TrainedLinear::Expand(DenseLinear& out, ThreadPool& pool) const {
  out.bias = bias_.value;
  out.out_features = weights_.out_features();
  if (!weights_.vptq.has_value()) {
    out.in_features = weights_.weight.view().dim(1);
    out.weight = Values(weights_.weight);
    return;
  }
  const int64_t in = weights_.vptq->in_features();
  const int64_t num_outputs = out.out_features;
  out.in_features = in;
  out.weight.resize(static_cast<size_t>(num_outputs * in));
  const Books books = ShownBooks();
  ForRuns(pool, [&](size_t part, Range rows, size_t) {
    const int64_t length = weights_.vptq->parts()[part].length;
    const float* const book = (IsOutliers(part) ? books.outliers : books.main).data();
    ForVectors(part, rows, [&](int64_t column, int64_t first, int64_t main, int64_t more) {
      const float scale = scale_.empty() ? 1.0f : scale_.value[column];
      const float offset = offset_.empty() ? 0.0f : offset_.value[column];
      for (int64_t e = std::max<int64_t>(0, -first); e < length && first + e < num_outputs; ++e) {
        const float centroid = book[main + e] + (more < 0 ? 0.0f : books.residual[more + e]);
        out.weight[(first + e) * in + column] = scale * centroid + offset;
      }
    });
  });
}

void TrainedLinear::Differentiate(const DenseLinear& gradient, ThreadPool& pool) {
  bias_.gradient = gradient.bias;
  if (!weights_.vptq.has_value()) return;
  const int64_t in = weights_.vptq->in_features();
  const int64_t num_outputs = gradient.out_features;
  TW_CHECK_EQ(static_cast<int64_t>(gradient.weight.size()), num_outputs * in);
  Parameter* const all[] = {&book_, &residual_, &outlier_book_, &scale_, &offset_};
  // Sums of each run, of all parameters one after the other.
  std::vector<size_t> begins;
  size_t total = 0;
  for (const Parameter* parameter : all) {
    begins.push_back(total);
    total += parameter->value.size();
  }
  std::vector<std::vector<float>> sums(kRuns, std::vector<float>(total, 0.0f));
  const Books books = ShownBooks();
  ForRuns(pool, [&](size_t part, Range rows, size_t run) {
    const int64_t length = weights_.vptq->parts()[part].length;
    const float* const book = (IsOutliers(part) ? books.outliers : books.main).data();
    float* const dbook = sums[run].data() + begins[IsOutliers(part) ? 2 : 0];
    float* const dresidual = sums[run].data() + begins[1];
    float* const dscale = sums[run].data() + begins[3];
    float* const doffset = sums[run].data() + begins[4];
    ForVectors(part, rows, [&](int64_t column, int64_t first, int64_t main, int64_t more) {
      const float scale = scale_.empty() ? 1.0f : scale_.value[column];
      float to_scale = 0.0f, to_offset = 0.0f;
      for (int64_t e = std::max<int64_t>(0, -first); e < length && first + e < num_outputs; ++e) {
        const float d = gradient.weight[(first + e) * in + column];
        to_offset += d;
        to_scale += d * (book[main + e] + (more < 0 ? 0.0f : books.residual[more + e]));
        dbook[main + e] += d * scale;
        if (more >= 0) dresidual[more + e] += d * scale;
      }
      if (!scale_.empty()) dscale[column] += to_scale;
      if (!offset_.empty()) doffset[column] += to_offset;
    });
  });
  for (size_t p = 0; p < std::size(all); ++p) {
    Parameter& parameter = *all[p];
    parameter.gradient.resize(parameter.value.size());
    for (size_t i = 0; i < parameter.value.size(); ++i) {
      double sum = 0.0;
      for (const std::vector<float>& run : sums) sum += run[begins[p] + i];
      parameter.gradient[i] = static_cast<float>(sum);
    }
  }
}

std::vector<Parameter*> TrainedLinear::parameters() {
  std::vector<Parameter*> found;
  for (Parameter* parameter : {&book_, &residual_, &outlier_book_, &scale_, &offset_, &bias_}) {
    if (!parameter->empty()) found.push_back(parameter);
  }
  return found;
}

}  // namespace thinwire
