"""Requests that wait for the detector share a batch."""

import asyncio
import threading

from efficientad_jax.serving.batching import Batcher


def test_waiting_items_are_batched_in_order():
    batches = []
    entered, go = threading.Event(), threading.Event()

    def run(items):
        batches.append(list(items))
        entered.set()
        go.wait(60)
        return [item * 10 for item in items]

    async def post_all():
        sizes = []
        batcher = Batcher(run, 4, sizes.append)
        worker = asyncio.create_task(batcher.work())
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(entered.wait, 60)
        others = [asyncio.create_task(batcher.submit(i)) for i in range(1, 8)]
        await asyncio.sleep(0.01)
        others[1].cancel()  # The client of item 2 disconnects.
        await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        worker.cancel()
        return results, sizes

    results, sizes = asyncio.run(post_all())
    assert batches == [[0], [1, 3, 4], [5, 6, 7]]
    assert sizes == [1, 3, 3]
    assert [r for r in results if isinstance(r, int)] == [0, 10, 30, 40, 50, 60, 70]
