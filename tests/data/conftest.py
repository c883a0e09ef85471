"""Files of tokens, made by other people's code."""

import functools
import http.server
import threading
import zlib
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboardX.record_writer import RecordWriter


@functools.cache
def example_type():
    """`tf.train.Example` as its definition says, of
    https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, int, str]):
        found = file.message_type.add(name=name)
        for field, number, label, kind, of in fields:
            of_type = {"type_name": of} if of else {}
            found.field.add(name=field, number=number, label=label, type=kind, **of_type)
        return found

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", 1, many, kinds.TYPE_BYTES, ""))
    message("FloatList", ("value", 1, many, kinds.TYPE_FLOAT, ""))
    message("Int64List", ("value", 1, many, kinds.TYPE_INT64, ""))
    message(
        "Feature",
        ("bytes_list", 1, one, kinds.TYPE_MESSAGE, ".t.BytesList"),
        ("float_list", 2, one, kinds.TYPE_MESSAGE, ".t.FloatList"),
        ("int64_list", 3, one, kinds.TYPE_MESSAGE, ".t.Int64List"),
    )
    features = message("Features", ("feature", 1, many, 11, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=kinds.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=11, type_name=".t.Feature")
    message("Example", ("features", 1, one, kinds.TYPE_MESSAGE, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def example(name: str, ids, about: str) -> bytes:
    made = example_type()()
    made.features.feature[about].bytes_list.value.append(b"other")
    made.features.feature[name].int64_list.value.extend(int(each) for each in ids)
    return made.SerializeToString()


@pytest.fixture(scope="session")
def tfrecords():
    """Writes records of ids to a path, packed as the original did if its name says so."""
    return write_tfrecords


def write_tfrecords(path: Path, records, name: str = "text", about: str = "about") -> Path:
    plain = path.with_name("plain")
    writer = RecordWriter(str(plain))
    for ids in records:
        writer.write(example(name, ids, about))
    writer.close()
    content = plain.read_bytes()
    plain.unlink()
    path.write_bytes(zlib.compress(content) if "zstd" in path.name else content)
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own web server, which knows no ranges."""

    def log_message(self, *words):
        """Say nothing."""


@pytest.fixture
def website():
    """Serves a folder, and says where."""
    servers = []

    def serve(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
