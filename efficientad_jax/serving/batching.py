"""What arrives while the detector is at work is put together and done next."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Hands items that come one by one to a function that takes several.

    Items are taken in the order they came in. A batch begins as soon as there is one item: nothing
    waits for others. `work` has to run as a task for as long as items are submitted.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        largest: int,
        observe: Callable[[int], object],
    ) -> None:
        """Prepares a batcher.

        Args:
          run: gives a result for each item; called in one thread of its own.
          largest: how many items it is given at most, from 1.
          observe: takes the size of each batch.
        """
        self._run = run
        self._largest = largest
        self._observe = observe
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()

    async def submit(self, item: Item) -> Result:
        """The result for an item, as soon as its batch is done.

        Raises:
          Exception: what `run` raised for its batch.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def work(self) -> None:
        """Runs batches until it is cancelled. A batch that fails does not end it."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "detector") as thread:
            while True:
                batch = [await self._queue.get()]
                while len(batch) < self._largest and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                # Who asked may be gone.
                batch = [(item, future) for item, future in batch if not future.done()]
                if not batch:
                    continue
                self._observe(len(batch))
                try:
                    items = [item for item, _ in batch]
                    results = await loop.run_in_executor(thread, self._run, items)
                    done = [
                        (future, result) for (_, future), result in zip(batch, results, strict=True)
                    ]
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for future, result in done:
                    if not future.done():
                        future.set_result(result)
