"""Several connections that load groups side by side, for a backlog: one transaction each at a time."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from loader.postgres.session import Connection

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def side_by_side(
    items: Iterable[Item],
    load: Callable[[Connection, Item], Outcome],
    connect: Callable[[], contextlib.AbstractContextManager[Connection]],
    *,
    count: int,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Load items over `count` connections of its own; yield each with its outcome, in the order of the items.

    No more items are taken than there are connections. If one fails with an error, those beside it end first.
    """
    free: SimpleQueue[Connection] = SimpleQueue()

    def run(item: Item) -> Outcome:
        connection = free.get()
        try:
            return load(connection, item)
        finally:
            free.put(connection)

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            free.put(stack.enter_context(connect()))
        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="line"))
        under_way: deque[tuple[Item, Future[Outcome]]] = deque()
        for item in items:
            under_way.append((item, pool.submit(run, item)))
            if len(under_way) == count:
                first, future = under_way.popleft()
                yield first, future.result()
        for item, future in under_way:
            yield item, future.result()
