import { expect, test } from 'vitest'
import { Arrivals } from './arrivals.js'
import { encodeCountersPage, restoreCounters } from './queue-page.js'
import { NO_COUNTS } from './counts.js'
import { Queue } from './queue.js'
import { CountedUse } from '../testing/log-use.js'
import { definition } from '../testing/queues.js'

const newQueue = (): Queue => new Queue(1, definition(), new CountedUse(), new Arrivals())

function restored(queue: Queue): Queue {
  const copy = newQueue()
  restoreCounters(copy, encodeCountersPage(queue), 0)
  return copy
}

test('a page has the counters of the queue and, for those of a tally, the values of the last tally', () => {
  const queue = newQueue()
  expect(restored(queue).counts).toBe(NO_COUNTS)
  queue.count('purged', 3)
  queue.count('released', 5)
  expect(restored(queue).counts).toEqual({ ...NO_COUNTS, purged: 3 })
  queue.tally()
  queue.count('released', 1)
  const copy = restored(queue)
  expect(copy.counts).toEqual({ ...NO_COUNTS, purged: 3, released: 5 })
  expect(copy.tallied).toEqual({ released: 5, redelivered: 0 })
  copy.count('purged', 1)
  expect([copy.counts.purged, NO_COUNTS.purged, newQueue().counts.purged]).toEqual([4, 0, 0])
})
