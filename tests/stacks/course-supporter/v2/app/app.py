"""course-supporter: courses with embeddings in Postgres, their materials in a bucket that is somebody else's."""

import os

from kit import Problem, equal, need, run, schema, serve, sql, unseal

VERSION, REVISION = "3.1.0", "0002"

need("DATABASE_URL", "ENCRYPTION_KEY", "S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY")


def database():
    schema(REVISION)
    equal(unseal(sql("select sealed from tokens where id = 1")), "canary", "the token")
    equal(sql("select title from courses order by embedding <-> cube(array[1, 1]) limit 1"), "canary", "the course")


def bucket():
    # The program's own options, on its standard input: no secret among its arguments.
    login = f'user = "{os.environ["S3_ACCESS_KEY"]}:{os.environ["S3_SECRET_KEY"]}"\n'
    url = f'{os.environ["S3_ENDPOINT"]}/course-materials?list-type=2'
    status = run(["curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", "--aws-sigv4", "aws:amz:us-east-1:s3",
                  "-K", "-", url], {}, login)
    if status != "200":
        raise Problem(f"the bucket answers {status}")


serve(VERSION, {"db": database, "s3": bucket})
