"""A process that passes Ethernet frames between two devices, late, and loses some of them.

Kernels can do this themselves, with netem, but not all are built with it. `tests.chaos.network` starts this
file as a program in the namespace where the two devices are to be, and speaks with it by lines of text:

====================  ========================  =====================================================
the caller writes     the answer                meaning
====================  ========================  =====================================================
(nothing yet)         ``ready``                 both devices are there
``DELAY LOSS``        ``changed``               seconds each way, share of the frames; from now on
(end of the input)    ``PASSED DROPPED``        counts of frames; the devices go with the process
====================  ========================  =====================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

# From linux/if_tun.h.
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000

LONGEST_FRAME_BYTES = 2048
FRAMES_AT_ONCE = 64
"""How many frames are read from one side before the other has its turn."""


def open_device(name: str) -> int:
    """Make an Ethernet device whose frames are read from, and written to, the descriptor returned."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


class Relay:
    """Frames between two devices, in order, whatever the delay is changed to.

    Parameters
    ----------
    left, right : int
        Descriptors of the devices.
    seed : int
        Of the random losses.
    """

    def __init__(self, left: int, right: int, seed: int) -> None:
        self._peers = {left: right, right: left}
        self._chance = random.Random(seed)
        self._under_way: deque[tuple[float, int, bytes]] = deque()  # when due, where to, frame
        self.delay_s = 0.0
        self.loss = 0.0
        self.passed = 0
        self.dropped = 0

    @property
    def devices(self) -> list[int]:
        """The descriptors to wait on."""
        return list(self._peers)

    def take(self, device: int) -> None:
        """Take in what a device has."""
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = os.read(device, LONGEST_FRAME_BYTES)
            except BlockingIOError:
                return
            if self._chance.random() < self.loss:
                self.dropped += 1
            else:
                due = time.monotonic() + self.delay_s
                if self._under_way:
                    # A shorter delay must not let a frame overtake those before it.
                    due = max(due, self._under_way[-1][0])
                self._under_way.append((due, self._peers[device], frame))

    def give(self) -> float | None:
        """Hand on the frames that are due; return the seconds to the next one, None if there is none."""
        while self._under_way:
            due, device, frame = self._under_way[0]
            if (early_s := due - time.monotonic()) > 0:
                return early_s
            self._under_way.popleft()
            try:
                os.write(device, frame)
                self.passed += 1
            except OSError:  # its queue is full, or it is down: lost, as on any wire
                self.dropped += 1
        return None


def say(text: str) -> None:
    # Past sys.stdout, which would complain at its end: whoever killed the caller does not want to hear it.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{text}\n".encode())


def main(left: str, right: str, seed: str) -> None:
    """Pass frames until the input ends; the first line of it says that the devices are up."""
    relay = Relay(open_device(left), open_device(right), int(seed))
    commands = sys.stdin.fileno()
    watched = [commands]
    say("ready")
    while True:
        ready, _, _ = select.select(watched, [], [], relay.give())
        for descriptor in ready:
            if descriptor != commands:
                relay.take(descriptor)
            elif line := os.read(commands, 1024):  # the caller waits for the answer: never two lines
                relay.delay_s, relay.loss = map(float, line.split())
                watched = [commands, *relay.devices]
                say("changed")
            else:
                say(f"{relay.passed} {relay.dropped}")
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
