/* Stacks that take turns. Everything happens on one host thread; a fiber runs until it switches. */
#pragma once
#include "emu.h"

namespace emu
{
struct fiber;

/* A fiber that will run entry, which never returns. It is never destroyed. */
fiber *fiber_new(void (*entry)());
/* For the stack that the host thread runs on. */
fiber *fiber_host();
/* Leave `from`, which runs, and go on with `to`; returns when something switches to `from`. */
void fiber_switch(fiber *from, fiber *to);
} // namespace emu
