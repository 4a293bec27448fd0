/* Switching stacks: six registers and the stack pointer by hand on x86-64, ucontext elsewhere. */
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#undef EMU_UCONTEXT
#define EMU_UCONTEXT 1
#include <ucontext.h>
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu
{
struct fiber {
#ifdef EMU_UCONTEXT
    ucontext_t context;
#else
    void *stack_pointer;
#endif
    void (*entry)();
    const void *stack; /* its lowest byte, above a page that nobody may touch */
    size_t bytes;
    void *fake_stack; /* AddressSanitizer's */
};

#ifdef EMU_ASAN
static const size_t STACK = 256 << 10;
#else
static const size_t STACK = 64 << 10;
#endif

/* Tops of stacks are this many steps of this size apart from their page: at the same place in each,
 * those of a warp would be in each other's way in the CPU's caches. */
enum { COLOURS = 8, COLOUR = 512 };

static fiber *arriving, *left;

/* On the new stack. What the sanitizer says of the old one is the only way to know the host's. */
static void arrive()
{
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(arriving->fake_stack, &left->stack, &left->bytes);
#endif
}

static void begin()
{
    arrive();
    arriving->entry();
    fail("a fiber has come to its end");
}

#ifdef EMU_UCONTEXT

static void prepare(fiber *f)
{
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = const_cast<void *>(f->stack);
    f->context.uc_stack.ss_size = f->bytes;
    makecontext(&f->context, begin, 0);
}

static void jump(fiber *from, fiber *to)
{
    swapcontext(&from->context, &to->context);
}

#else

extern "C" void emu_switch(void **save, void *to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch
)");

/* As if the fiber had called emu_switch at the beginning of `begin`, which returns to nowhere. */
static void prepare(fiber *f)
{
    void **top = (void **)((char *)const_cast<void *>(f->stack) + f->bytes);
    *--top = nullptr;
    *--top = (void *)begin;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    f->stack_pointer = top;
}

static void jump(fiber *from, fiber *to)
{
    emu_switch(&from->stack_pointer, to->stack_pointer);
}

#endif

fiber *fiber_new(void (*entry)())
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p = (char *)mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE))
        fail("no memory for the stack of a thread");
    static size_t made;
    fiber *f = new fiber{};
    f->entry = entry;
    f->stack = p + page;
    f->bytes = STACK - made++ % COLOURS * COLOUR;
    prepare(f);
    return f;
}

fiber *fiber_host()
{
    static fiber host;
    return &host;
}

void fiber_switch(fiber *from, fiber *to)
{
    left = from;
    arriving = to;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes);
#endif
    jump(from, to);
    arrive();
}
} // namespace emu
