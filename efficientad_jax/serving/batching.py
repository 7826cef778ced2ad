"""Batches the images that arrive while the detector is busy."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects single items into batches and passes these to a function.

    Items are processed in the order of their arrival. A batch starts as soon as there is one item
    and the function is free: no item waits for others to arrive. `work` has to run as a task for as
    long as items are submitted.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        max_size: int,
        observe_size: Callable[[int], object],
    ) -> None:
        """Creates a batcher without items.

        Args:
          run: takes a batch and returns a result for each item; called in a separate thread.
          max_size: largest number of items per batch, at least 1.
          observe_size: is called with the size of each batch.
        """
        self._run = run
        self._max_size = max_size
        self._observe_size = observe_size
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()

    async def submit(self, item: Item) -> Result:
        """Adds an item, waits for its batch and returns the item's result.

        Raises:
          Exception: any that `run` raised for the batch.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def work(self) -> None:
        """Runs batches until it is canceled. A batch that fails does not end it."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "detector") as thread:
            while True:
                batch = [await self._queue.get()]
                while len(batch) < self._max_size and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                # The client of an item may have disconnected.
                batch = [(item, future) for item, future in batch if not future.done()]
                if not batch:
                    continue
                self._observe_size(len(batch))
                try:
                    items = [item for item, _ in batch]
                    results = await loop.run_in_executor(thread, self._run, items)
                    answered = [
                        (future, result) for (_, future), result in zip(batch, results, strict=True)
                    ]
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for future, result in answered:
                    if not future.done():
                        future.set_result(result)
