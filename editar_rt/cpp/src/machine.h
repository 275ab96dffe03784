// The machine's cores and memory, and the share that this process may use: editar_rt/machine.py.
#pragma once

#include <cstdint>
#include <shared_mutex>
#include <string>
#include <vector>

namespace editar {

int thread_count();          // one per physical core that this process may use
int thread_limit();          // the machine's logical cores, even if this process may not use all
bool is_limited();           // whether affinity or a quota limits this process to fewer cores than the machine has
std::string machine_name();  // as uname -m
std::string machine_description();  // "x86_64 Linux, 2 cores"
std::string processor_features();   // the line of /proc/cpuinfo that lists the instruction sets; "" if there is none

// This process's number, which is another one after a fork; 0 on Windows, where there are no forks.
int64_t process_number();

int64_t peak_resident_bytes();  // 0 if the system does not report it
void note_sharing();            // call it before pages are first mapped twice
int64_t peak_memory_bytes(int64_t counted_twice);

// To be held while an engine opens or closes files with weights.
std::shared_lock<std::shared_mutex> mapping_weights();
// Drop the resident pages of files with weights: they are loaded again when they are read. Mappings that the process
// has written to are not touched. Does nothing while another thread opens or closes such files.
void drop_file_pages(const std::vector<std::string>& weights);
void trim_heap();                                        // return freed blocks of the C library's heap to the system
int64_t bytes_counted_twice(const std::string& memory);  // of the mappings of an in-memory file of this name

// Text of a small system file; "" if it cannot be read.
std::string read_text(const std::string& path);

}  // namespace editar
