# Sourced by launcher/demo.sh and tests/run.sh: installs what thinwire is built from, on Debian 12
# or Ubuntu 24.04. Needs root or sudo only if something is missing.
thinwire_packages=(
  build-essential cmake ninja-build ccache pkg-config  # build
  libabsl-dev             # Status, strings, containers
  libhwy-dev              # portable SIMD
  libopenblas-dev         # sgemm
  libopenmpi-dev openmpi-bin  # ranks
  nlohmann-json3-dev      # JSON
  libpcre2-dev libutf8proc-dev libsentencepiece-dev  # tokenizers
  libxxhash-dev           # checks of messages between ranks
  libcli11-dev libspdlog-dev  # command line, logs
  gnuplot-nox             # inspect --plot, report
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev  # serve: gRPC
  libcpp-httplib-dev libssl-dev libbrotli-dev zlib1g-dev  # serve: HTTP
  prometheus-cpp-dev      # serve: /metrics
)
thinwire_test_packages=(
  libgtest-dev libgmock-dev libbenchmark-dev python3 clang-format
  iproute2 ethtool        # two hosts on one machine
  python3-grpcio python3-protobuf curl wrk python3-venv  # clients of serve
  nginx-light             # and a gateway before it
)

# install_packages NAME...: those of the named packages that are not there yet.
install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
      missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then return 0; fi
  echo "== installing ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: install these packages by hand (names as on Debian): ${missing[*]}" >&2
    return 1
  fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "not root and no sudo: as root, run: apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_openai DIR: an interpreter, DIR/bin/python, that has the openai package, a client of serve
# that Debian does not have. Without PyPI nothing is there, and the tests that want it say so.
install_openai() {
  local version=3.54.0
  if "$1/bin/python" -c "import openai; assert openai.__version__ == '$version'" 2>/dev/null; then
    return 0
  fi
  echo "== installing openai $version from PyPI"
  rm -rf "$1"
  python3 -m venv "$1" && timeout 300 "$1/bin/python" -m pip --disable-pip-version-check \
    install --quiet --retries 1 --timeout 20 "openai==$version" && return 0
  rm -rf "$1"
  echo "== PyPI cannot be reached: the tests with openai's package will be skipped" >&2
}
