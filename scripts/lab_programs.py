"""Programs that scripts/check_lab runs on devices to measure, send and look; Python, but the last, which is shell."""

BUSY = """
import sys, time
def share(seconds):
    wall, used = time.monotonic(), time.process_time()
    while time.monotonic() - wall < seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - wall)
print(*(share(float(sys.argv[1]) / 7) for _ in range(7)))
"""
RECEIVE = """
import socket, sys, threading, time
seconds, senders = float(sys.argv[1]), int(sys.argv[2])
server = socket.create_server(("", 9000))
print("ready", flush=True)
links = [server.accept()[0] for _ in range(senders)]
total, buffer = [0] * senders, 1 << 18
def drain(number):
    while data := links[number].recv(buffer):
        total[number] += len(data)
def frames():
    line = next(line for line in open("/proc/net/dev") if "eth0" in line)
    return int(line.split(":")[1].split()[0])
threads = [threading.Thread(target=drain, args=(number,), daemon=True) for number in range(senders)]
for thread in threads:
    thread.start()
time.sleep(1.5)  # the bucket is empty, and TCP has found the rate
before, seen, began = sum(total), frames(), time.monotonic()
time.sleep(seconds)
after, also, ended = sum(total), frames(), time.monotonic()
print((after - before) * 8 / (ended - began), (also - seen) * 8 / (ended - began), flush=True)
"""
SEND = """
import socket, sys, time
link = socket.create_connection((sys.argv[1], 9000), timeout=20)
data, end = bytes(1 << 16), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    link.sendall(data)
"""
AVAHI = """
set -e
for folder in /run/dbus /run/avahi-daemon; do mkdir -p $folder; mount -t tmpfs none $folder; done
dbus-daemon --system --nofork --nopidfile 2>/dev/null & bus=$!
until [ -S /run/dbus/system_bus_socket ]; do sleep 0.1; done
avahi-daemon --no-drop-root --no-chroot --no-rlimits 2>/dev/null & daemon=$!
until avahi-browse -at >/dev/null 2>&1; do sleep 0.2; done
sleep 2
timeout 20 avahi-browse -rtp _infermesh._tcp
kill $daemon $bus
"""
