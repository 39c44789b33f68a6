"""The mail worker of a release that was never started before it was deployed."""

from kit import need, redis, send_mail

need("REDIS_PASSWORD")
while True:
    send_mail(redis("BLPOP", "bull:mail:wait", "1"))
