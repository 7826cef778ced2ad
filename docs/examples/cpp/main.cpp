// Runs an exported detector with ONNX Runtime: prints score, verdict and regions as a line of JSON.
//   detect mine.onnx photo.ppm
// The photo is a binary PPM file. Replace `read_ppm` by your camera or by an image library.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>
#include <onnxruntime_cxx_api.h>

struct Image {  // row by row, the channels of a pixel next to each other
  int width, height, channels;
  std::vector<float> values;
};

struct Region {
  int left, top, right, bottom, area = 0;
  double x = 0, y = 0, sum = 0, peak = -INFINITY;
};

Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int width = 0, height = 0, largest = 0;
  file >> kind >> width >> height >> largest;
  file.get();
  if (kind != "P6" || largest != 255) throw std::runtime_error(path + ": no 8-bit PPM file");
  std::vector<char> bytes(size_t(3) * width * height);
  if (!file.read(bytes.data(), bytes.size())) throw std::runtime_error(path + ": is cut off");
  Image image{width, height, 3, std::vector<float>(bytes.size())};
  for (size_t i = 0; i < bytes.size(); ++i) image.values[i] = uint8_t(bytes[i]);
  return image;
}

// Resizes rows and transposes: bilinear, with antialiasing when it shrinks, as Pillow does.
Image resize_rows(const Image& image, int width, bool rounds) {
  Image resized{image.height, width, image.channels,
                std::vector<float>(size_t(width) * image.height * image.channels)};
  const double scale = double(image.width) / width, support = std::max(scale, 1.0);
  for (int x = 0; x < width; ++x) {
    const double center = (x + 0.5) * scale;
    const int first = std::max(0, int(center - support + 0.5));
    const int last = std::min(image.width, int(center + support + 0.5));
    std::vector<double> weights;
    double total = 0;
    for (int i = first; i < last; ++i) {
      weights.push_back(std::max(0.0, 1 - std::abs(i - center + 0.5) / support));
      total += weights.back();
    }
    for (double& weight : weights)  // of pixels to 22 bits, with which Pillow computes
      weight = rounds ? std::floor(weight / total * (1 << 22) + 0.5) / (1 << 22) : weight / total;
    for (int y = 0; y < image.height; ++y)
      for (int c = 0; c < image.channels; ++c) {
        double sum = 0;
        for (int i = first; i < last; ++i)
          sum += weights[i - first] *
                 image.values[(size_t(y) * image.width + i) * image.channels + c];
        resized.values[(size_t(x) * image.height + y) * image.channels + c] =
            rounds ? std::floor(sum + 0.5) : sum;
      }
  }
  return resized;
}

Image resize(const Image& image, int width, int height, bool rounds) {
  return resize_rows(resize_rows(image, width, rounds), height, rounds);
}

// Connected pixels, corners included, at or above the threshold; the highest peak first.
std::vector<Region> find_regions(const Image& map, float threshold, int smallest) {
  std::vector<Region> regions;
  std::vector<char> is_open(map.values.size());
  for (size_t i = 0; i < is_open.size(); ++i) is_open[i] = map.values[i] >= threshold;
  for (size_t start = 0; start < is_open.size(); ++start) {
    if (!is_open[start]) continue;
    Region region{map.width, map.height, 0, 0};
    std::vector<size_t> pending{start};
    is_open[start] = false;
    while (!pending.empty()) {
      const size_t place = pending.back();
      pending.pop_back();
      const int x = int(place % map.width), y = int(place / map.width);
      region.left = std::min(region.left, x), region.right = std::max(region.right, x + 1);
      region.top = std::min(region.top, y), region.bottom = std::max(region.bottom, y + 1);
      region.area += 1, region.x += x + 0.5, region.y += y + 0.5;
      region.sum += map.values[place];
      region.peak = std::max<double>(region.peak, map.values[place]);
      for (int row = std::max(y - 1, 0); row <= std::min(y + 1, map.height - 1); ++row)
        for (int column = std::max(x - 1, 0); column <= std::min(x + 1, map.width - 1); ++column) {
          const size_t next = size_t(row) * map.width + column;
          if (is_open[next]) pending.push_back(next), is_open[next] = false;
        }
    }
    if (region.area >= smallest) regions.push_back(region);
  }
  std::stable_sort(regions.begin(), regions.end(),
                   [](const Region& a, const Region& b) { return a.peak > b.peak; });
  return regions;
}

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: detect MODEL.onnx PHOTO.ppm");
  Ort::Env env;
  Ort::Session session(env, arguments[1], Ort::SessionOptions());
  const auto metadata = session.GetModelMetadata();
  Ort::AllocatorWithDefaultOptions allocator;
  const auto property = [&](const char* name) {  // empty without it
    const auto value = metadata.LookupCustomMetadataMapAllocated(name, allocator);
    return std::string(value ? value.get() : "");
  };
  if (!property("fit").empty() || !property("region_of_interest").empty())
    throw std::runtime_error("fit, region_of_interest: this example only resizes images");
  const int height = std::stoi(property("input_height"));
  const int width = std::stoi(property("input_width"));
  const Image photo = read_ppm(arguments[2]), resized = resize(photo, width, height, true);
  std::vector<uint8_t> pixels(resized.values.begin(), resized.values.end());
  const int64_t shape[] = {1, height, width, 3};
  const auto input = Ort::Value::CreateTensor<uint8_t>(
      Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), pixels.data(),
      pixels.size(), shape, 4);
  const char *inputs[] = {"images"}, *outputs[] = {"scores", "combined"};
  const auto found = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, 2);
  const float score = found[0].GetTensorData<float>()[0];
  const auto size = found[1].GetTensorTypeAndShapeInfo().GetShape();
  const float* cells = found[1].GetTensorData<float>();
  const Image map{int(size[2]), int(size[1]), 1, {cells, cells + size[1] * size[2]}};

  const std::string limit = property("threshold"), pixel_limit = property("pixel_threshold");
  const char* verdict = limit.empty() ? "null" : score >= std::stod(limit) ? "true" : "false";
  std::printf("{\"score\": %.9g, \"verdict\": %s, \"regions\": ", score, verdict);
  if (pixel_limit.empty()) return std::puts("null}") < 0;
  const Image enlarged = resize(map, photo.width, photo.height, false);
  const int smallest = std::stoi(property("smallest_region"));
  const char* separator = "[";
  for (const Region& r : find_regions(enlarged, std::stof(pixel_limit), smallest)) {
    std::printf("%s{\"box\": [%d, %d, %d, %d], \"area\": %d, ", separator, r.left, r.top,
                r.right - r.left, r.bottom - r.top, r.area);
    std::printf("\"centroid\": [%.9g, %.9g], \"peak_score\": %.9g, \"mean_score\": %.9g}",
                r.x / r.area, r.y / r.area, r.peak, r.sum / r.area);
    separator = ", ";
  }
  std::puts(*separator == '[' ? "[]}" : "]}");
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
