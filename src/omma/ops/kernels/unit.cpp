// The processor's matrix unit.
#include <sys/syscall.h>
#include <unistd.h>

// Asks Linux for its use; 0 where it is granted.
extern "C" long allowed() { return syscall(SYS_arch_prctl, 0x1023, 18); }
