"""Usage: version_1.py DATA SOURCE

Makes, in the directory DATA, a database of version 1 with the batches of another data directory;
run under record.so, so that it is on the recorded disk."""
import os
import pathlib
import re
import sqlite3
import sys

SCHEMA = pathlib.Path(__file__).parents[1] / "unit/test_store_schema.c"
COLUMNS = ("no,id,iif(state=6,1,state),pages,total,succeeded,failed,cancelled,bytes,created,started,"
           "ended,max_parallel,max_per_host,max_redirects,defaults,name,metadata,idem_key,idem_hash")
RESULT = ("id,key,status,http_status,http_version,error,message,attempts,truncated,url,final_url,"
          "custom_id,headers,redirects,remote_ip,timing,completed,body_len,has_body")


def schema():
    """The statements of that time, as the unit test of migrations has them."""
    text = SCHEMA.read_text()
    begin = text.index("static const char version_1[] =")
    text = text[begin:text.index("/* one that is running", begin)]
    return "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', text))


def sync(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def main(data, source):
    os.mkdir(data)
    sync(os.path.dirname(data))
    db = sqlite3.connect(f"{data}/batchfetch.db", isolation_level=None)
    db.executescript(schema())
    db.execute("ATTACH ? AS old", (f"{source}/batchfetch.db",))
    db.execute("BEGIN")
    for table, columns in (("batch", COLUMNS), ("page", "*"), ("result", RESULT), ("body", "*")):
        db.execute(f"INSERT INTO main.{table} SELECT {columns} FROM old.{table}")
    db.execute("COMMIT")
    db.close()
    sync(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
