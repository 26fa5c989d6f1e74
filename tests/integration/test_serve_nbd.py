"""`tiermem device serve-nbd` and `NbdServer`, by a client of a few lines."""

import json
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiermem.config import BackendConfig, DeviceSpec
from tiermem.emulator import NbdServer
from tiermem.errors import CapacityError, ConfigError

GO = b"\0\0\0\x03IHAVEOPT" + struct.pack(">II", 7, 6) + bytes(6)


def _take(client: socket.socket, nbytes: int) -> bytes:
    found = b""
    while len(found) < nbytes:
        piece = client.recv(nbytes - len(found))
        assert piece, "the server hung up"
        found += piece
    return found


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(str(path))
    client.sendall(GO)
    # The greeting, two infos with 12 and 14 bytes, and an acknowledgement.
    assert _take(client, 18 + 32 + 34 + 20).startswith(b"NBDMAGICIHAVEOPT")
    return client


def _ask(
    client: socket.socket, kind: int, offset: int, nbytes: int, payload: bytes = b""
) -> tuple[int, bytes]:
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 42, offset, nbytes) + payload)
    magic, error, cookie = struct.unpack(">IIQ", _take(client, 16))
    assert (magic, cookie) == (0x67446698, 42)
    data = _take(client, nbytes) if kind == 0 and not error else b""
    return error, data


def _serve(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tiermem", "device", "serve-nbd", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_verb_serves_until_a_signal_and_leaves_no_socket(tmp_path: Path, number: signal.Signals) -> None:
    path, report = tmp_path / "device.sock", tmp_path / "report.json"
    with _serve("nand-p3700", "--size", "8MiB", "--socket", str(path), "--json", str(report)) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert f"nbd+unix:///?socket={path}" in line
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with _connect(path) as client:
            assert _ask(client, 1, 100, 5, b"hello") == (0, b"")
            assert _ask(client, 0, 99, 7) == (0, b"\0hello\0")
            assert _ask(client, 0, 8 << 20, 1)[0] == 22
            client.sendall(b"nonsense, and a good deal of it")
            assert client.recv(1) == b""
        server.send_signal(number)
        out, err = server.communicate(timeout=30)
        assert server.returncode == 0, err
    assert not path.exists()
    found = json.loads(report.read_text())
    assert (found["connections"], found["refused"]) == (1, 1)
    assert (found["device"]["reads"], found["device"]["writes"]) == (1, 1)
    assert found["device"]["read_latency"]["p50_ns"] > 50_000
    assert "without its magic number" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["nand-p3700", "--size", "9TiB", "--socket", "SOCKET"],
            "between one byte and the device's capacity",
        ),
        (["nand-p3700", "--size", "lots", "--socket", "SOCKET"], "lots"),
        (["pmem-100", "--size", "1MiB", "--socket", "SOCKET"], "byte-addressable"),
        (["nand-p3700", "--size", "1MiB", "--socket", "/nonexistent/x.sock"], "/nonexistent/x.sock"),
        (["nand-p3700", "--size", "1MiB", "--socket", "TAKEN"], "is no socket"),
        (["nand-p3700", "--size", "1MiB", "--socket", "SOCKET", "--transport", "soon"], "soon"),
        (["nand-p3700", "--size", "1MiB", "--socket", "SOCKET", "--seed", "-1"], "seed"),
        (["nand-p3700", "--size", "1MiB"], "--socket"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    places = {"SOCKET": str(tmp_path / "device.sock"), "TAKEN": str(taken)}
    with _serve(*(places.get(argument, argument) for argument in arguments)) as server:
        _, err = server.communicate(timeout=60)
    assert server.returncode in (1, 2)
    assert sentence in err
    assert "Traceback" not in err
    assert taken.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_server_in_a_thread_can_be_stopped_and_keeps_its_bytes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    backend = BackendConfig(engine="auto", directory=str(tmp_path))
    spec = DeviceSpec.load("optane-p4800x")
    with NbdServer(spec, size="1MiB", socket=path, backend=backend, zero_latency=True) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        with _connect(path) as client:
            assert _ask(client, 1, 1, 3, b"abc") == (0, b"")
            assert _ask(client, 3, 0, 0) == (0, b"")
            assert _ask(client, 0, 0, 5) == (0, b"\0abc\0")
            with pytest.raises(ConfigError, match="another server"):
                NbdServer(spec, size="1MiB", socket=path)
            server.stop()
            thread.join(timeout=30)
        stats = server.stats()
    assert not thread.is_alive()
    assert stats.device.engine in ("io_uring", "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="closed"):
        server.run()


def test_a_size_that_the_device_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapacityError):
        NbdServer(DeviceSpec.load("nand-p3700"), size=0, socket=tmp_path / "x")
    with pytest.raises(ConfigError, match="transport_ns"):
        NbdServer(DeviceSpec.load("nand-p3700"), size=1, socket=tmp_path / "x", transport_ns=-1)
