// A libnvrtc.so.13 for machines without NVIDIA's: it compiles nothing, since g++ has compiled the kernels into the emulator
// already, and gives images that name a source's kernels, which is what the emulator's driver asks of them.
//
// It refuses what the real one would refuse for reasons that show without a compiler: a source that includes a header which was
// not handed over, and architectures that no GPU has. What kernels take of a multiprocessor it does not know. On a GPU its images are refused.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) Result

namespace {

// The numbers of nvrtc.h.
enum Result : int {
    SUCCESS = 0,
    OUT_OF_MEMORY = 1,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
};

constexpr const char* TEXTS[] = {
    "NVRTC_SUCCESS",
    "NVRTC_ERROR_OUT_OF_MEMORY",
    "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
    "NVRTC_ERROR_INVALID_INPUT",
    "NVRTC_ERROR_INVALID_PROGRAM",
    "NVRTC_ERROR_INVALID_OPTION",
    "NVRTC_ERROR_COMPILATION",
};

// Those of the NVRTC of CUDA 13.
constexpr int ARCHS[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct Program {
    std::string file, source;
    std::vector<std::string> header_names;
    std::string log, ptx, cubin;
};

// The rest of `text` behind the next `mark` from `at` on, which moves there; null behind the last one.
const char* behind(const std::string& text, const char* mark, size_t& at) {
    at = text.find(mark, at);
    if (at == std::string::npos) return nullptr;
    at += strlen(mark);
    return text.c_str() + at;
}

// Names of the entry points, written in the one form that build.sh and the trainer know too.
std::vector<std::string> kernels(const std::string& source) {
    std::vector<std::string> names;
    size_t at = 0;
    while (behind(source, "extern \"C\" __global__ void __launch_bounds__(", at)) {
        const size_t from = source.find_first_not_of(" \n", source.find(')', at) + 1);
        const size_t to = source.find_first_of(" (\n", from);
        if (to == std::string::npos) break;
        names.push_back(source.substr(from, to - from));
    }
    return names;
}

// The first header that the source includes and nobody handed over; empty when there is none. Headers have conditions for
// including others, so they are not looked into.
std::string missing_header(const Program& program) {
    for (const char* mark : {"#include \"", "#include <"}) {
        size_t at = 0;
        while (const char* name = behind(program.source, mark, at)) {
            const std::string wanted(name, strcspn(name, "\">\n"));
            const std::vector<std::string>& known = program.header_names;
            if (std::find(known.begin(), known.end(), wanted) == known.end()) return wanted;
        }
    }
    return {};
}

// An ELF file with one section, which holds the names, each with its NUL.
std::string elf(const std::vector<std::string>& names) {
    constexpr uint64_t HEADER = 64, SECTION = 64;
    std::string image(HEADER + SECTION, '\0');
    const auto put = [&](size_t at, auto value) { memcpy(&image[at], &value, sizeof value); };
    memcpy(&image[0], "\177ELF\2\1\1", 7);
    put(18, uint16_t{190});        // the machine: CUDA
    put(40, HEADER);               // where the table of sections begins
    put(52, uint16_t{HEADER});
    put(58, uint16_t{SECTION});
    put(60, uint16_t{1});          // how many there are
    put(HEADER + 4, uint32_t{1});  // bytes of the program
    put(HEADER + 24, HEADER + SECTION);
    for (const std::string& name : names) image.append(name.c_str(), name.size() + 1);
    put(HEADER + 32, uint64_t{image.size() - HEADER - SECTION});
    return image;
}

Result give(const std::string& text, char* to) { return memcpy(to, text.c_str(), text.size() + 1), SUCCESS; }

}  // namespace

API nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, SUCCESS; }
extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int result) {
    return result >= 0 && result <= COMPILATION ? TEXTS[result] : "NVRTC_ERROR unknown";
}
API nvrtcGetNumSupportedArchs(int* count) { return *count = sizeof ARCHS / sizeof *ARCHS, SUCCESS; }
API nvrtcGetSupportedArchs(int* archs) { return memcpy(archs, ARCHS, sizeof ARCHS), SUCCESS; }

API nvrtcCreateProgram(Program** program, const char* source, const char* file, int count, const char* const*, const char* const* names) {
    if (!program || !source || count < 0) return INVALID_INPUT;
    *program = new (std::nothrow) Program{file ? file : "default_program", source, {}, {}, {}, {}};
    if (!*program) return OUT_OF_MEMORY;
    (*program)->header_names.assign(names, names + count);
    return SUCCESS;
}
API nvrtcDestroyProgram(Program** program) { return delete *program, *program = nullptr, SUCCESS; }
API nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    if (!program) return INVALID_PROGRAM;
    std::string arch;
    for (int i = 0; i < count; ++i) {
        const char* value = strchr(options[i], '=');
        if (strncmp(options[i], "--gpu-architecture", 18) == 0 && value) arch = value + 1;
    }
    bool known = false;
    for (const int one : ARCHS) known = known || arch.rfind("sm_" + std::to_string(one), 0) == 0;
    if (!known) return program->log = "no architecture " + arch + "\n", INVALID_OPTION;
    const std::string missing = missing_header(*program);
    if (!missing.empty()) {
        program->log = program->file + ": catastrophic error: could not open source file \"" + missing + "\"\n";
        return COMPILATION;
    }
    const std::vector<std::string> names = kernels(program->source);
    program->cubin = elf(names);
    program->ptx = ".version 9.0\n.target " + arch + "\n.address_size 64\n";
    for (const std::string& name : names) program->ptx += ".visible .entry " + name + "()\n{\nret;\n}\n";
    return SUCCESS;
}

// Sizes of texts count their NUL; a cubin has none.
API nvrtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size() + 1, SUCCESS; }
API nvrtcGetProgramLog(Program* program, char* log) { return give(program->log, log); }
API nvrtcGetPTXSize(Program* program, size_t* size) { return *size = program->ptx.size() + 1, SUCCESS; }
API nvrtcGetPTX(Program* program, char* ptx) { return give(program->ptx, ptx); }
API nvrtcGetCUBINSize(Program* program, size_t* size) { return *size = program->cubin.size(), SUCCESS; }
API nvrtcGetCUBIN(Program* program, char* cubin) { return memcpy(cubin, program->cubin.data(), program->cubin.size()), SUCCESS; }
