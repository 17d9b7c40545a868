import { QUEUE_OPTION_DEFAULTS } from '@sluice/protocol'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { Arrivals } from './arrivals.js'
import { encodeChunkPage } from './chunk-page.js'
import { Queue } from './queue.js'
import { CountedUse } from '../testing/log-use.js'
import { runs } from '../../../../test/amount.js'

const QUEUES = 3
const NOW_MS = 1_000

function queuesOn(arrivals: Arrivals, use: CountedUse): Queue[] {
  return Array.from({ length: QUEUES }, (_, index) => {
    const definition = {
      name: `q${index}`,
      options: QUEUE_OPTION_DEFAULTS,
      createdAtMs: 0,
      paused: false,
      idsFrom: 0,
    }
    const queue = new Queue(index + 1, definition, use, arrivals)
    queue.open(NOW_MS)
    return queue
  })
}

const pagesOf = (queue: Queue): string[] =>
  [...queue.chunks].map((chunk) => Buffer.from(encodeChunkPage(chunk, queue)).toString('hex'))

const steps = fc.array(
  fc.oneof(
    {
      weight: 8,
      arbitrary: fc.record({
        queue: fc.nat(QUEUES - 1),
        // The largest batches have more messages than a chunk holds, and more than may stay in the ring.
        append: fc.oneof(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 1_500 })),
      }),
    },
    { weight: 1, arbitrary: fc.record({ queue: fc.nat(QUEUES - 1), look: fc.constant(true) }) },
    { weight: 1, arbitrary: fc.record({ queue: fc.nat(QUEUES - 1), drop: fc.constant(true) }) },
  ),
  { maxLength: 60, size: 'max' },
)

test('batches that wait in the ring have the same effect as batches applied at once', () => {
  let waited = 0
  fc.assert(
    fc.property(steps, fc.integer({ min: 1, max: 9 }), (all, slots) => {
      const use = new CountedUse()
      const late = queuesOn(new Arrivals(slots), use)
      const prompt = queuesOn(new Arrivals(1), new CountedUse())
      let position = 0
      for (const step of all) {
        const queues = [late[step.queue]!, prompt[step.queue]!]
        if ('append' in step) {
          position += 512
          for (const queue of queues)
            queue.append(step.append, position, NOW_MS + position, step.append * 100)
          queues[1]!.applyArrivals()
          if (queues[0]!.lastArrival !== -1) waited++
        } else if ('look' in step) expect(pagesOf(queues[0]!)).toEqual(pagesOf(queues[1]!))
        else for (const queue of queues) queue.drop()
      }
      const live = new Map<number, number>()
      late.forEach((queue, index) => {
        const { next, live: messages, bytes: recordBytes, dirty } = prompt[index]!
        expect({ next: queue.next, live: queue.live, dirty: queue.dirty }).toEqual({
          next,
          live: messages,
          dirty,
        })
        expect(queue.bytes).toBeCloseTo(recordBytes)
        expect(pagesOf(queue)).toEqual(pagesOf(prompt[index]!))
        queue.audit()
        queue.chunks.eachNeededBatch((position, bytes) => void live.set(position, bytes))
      })
      for (const [position, bytes] of use.live) expect(bytes).toBe(live.get(position) ?? 0)
    }),
    { numRuns: runs(100, 3_000) },
  )
  expect(waited).toBeGreaterThan(300)
})

test('the ring holds a bounded number of messages of one queue', () => {
  const [queue] = queuesOn(new Arrivals(1 << 16), new CountedUse())
  let longest = 0
  let waiting = 0
  for (let position = 0; position < 5_000; position++) {
    queue!.append(1, position * 512, NOW_MS, 100)
    waiting = queue!.lastArrival === -1 ? 0 : waiting + 1
    longest = Math.max(longest, waiting)
  }
  expect(longest).toBeLessThan(1_024)
  expect(queue!.ready).toBe(5_000)
  expect(queue!.lastArrival).toBe(-1)
})
