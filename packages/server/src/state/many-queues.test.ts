/** The cost of many queues of which only one changes. */
import { BATCH_TYPE, batchLength, batchType, queueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { entryBatches } from '../log/entry.js'
import { Bench } from '../testing/bench.js'
import { TIMEOUT_MS, runs } from '../../../../test/amount.js'

const QUEUES = runs(3_000, 100_000)
const SEGMENT = 1 << 20
/** Maximum size of a checkpoint with the pages of one queue, the nodes above them in the tree, and the directory. */
const CHECKPOINT_BYTES_MAX = 64 << 10

const nameOf = (index: number): ReturnType<typeof queueName> => queueName(`queue-${index}`)

interface Pages {
  bytes: number
  directories: number
}

/** The pages, nodes and directories that were written from `position` on. */
function pagesFrom(bench: Bench, position: number): Pages {
  const pages = { bytes: 0, directories: 0 }
  for (const entry of bench.log.entries) {
    if (entry.position < position) continue
    for (const at of entryBatches(entry.bytes, 0)) {
      const type = batchType(entry.bytes, at)
      if (type !== BATCH_TYPE.page && type !== BATCH_TYPE.directory) continue
      pages.bytes += batchLength(entry.bytes, at)
      if (type === BATCH_TYPE.directory) pages.directories++
    }
  }
  return pages
}

/**
 * Publishes one message, then fills the log with other data until checkpoints are complete. Returns the bytes of the pages
 * of one checkpoint.
 */
async function checkpointAfterOne(bench: Bench): Promise<number> {
  const position = bench.broker.endPosition
  await bench.publish([{}], nameOf(7))
  await bench.fill(SEGMENT * 0.75)
  const { bytes, directories } = pagesFrom(bench, position)
  expect(directories).toBeGreaterThan(0)
  return bytes / directories
}

/** The offset and mark of the first message that the queue delivers. */
async function firstOf(bench: Bench, name: ReturnType<typeof queueName>): Promise<object> {
  const worker = bench.consume(1, { name })
  await bench.settle()
  const { offset, redelivered } = worker.got[0]!
  worker.leave()
  await bench.settle()
  return { offset, redelivered }
}

describe(`${QUEUES} queues`, () => {
  it(
    'are not written by a checkpoint after one publish, nor after a crash that marks all their messages',
    async () => {
      const bench = await new Bench({ segmentBytes: SEGMENT, queuesMax: 2 * QUEUES }).open()
      for (let index = 0; index < QUEUES; index++) {
        bench.ensure({}, nameOf(index))
        bench.put([{}], nameOf(index))
        if (index % 500 === 0) await bench.settle()
      }
      await bench.settle()
      await bench.fill(2 * SEGMENT)
      expect(await firstOf(bench, nameOf(1))).toEqual({ offset: 0, redelivered: false })
      expect(await checkpointAfterOne(bench)).toBeLessThan(CHECKPOINT_BYTES_MAX)

      expect(await bench.crash()).toBe(true)
      expect(bench.broker.status).toMatchObject({ queues: QUEUES + 1, afterCrash: true })
      expect(await firstOf(bench, nameOf(2))).toEqual({ offset: 0, redelivered: true })
      expect(await checkpointAfterOne(bench)).toBeLessThan(CHECKPOINT_BYTES_MAX)

      // After an orderly stop, only the directory says that the previous run crashed.
      await bench.fill(SEGMENT)
      await bench.broker.close()
      expect(await bench.crash()).toBe(true)
      expect(bench.broker.status).toMatchObject({ afterCrash: false, messages: QUEUES + 2 })
      expect(await firstOf(bench, nameOf(3))).toEqual({ offset: 0, redelivered: true })
      bench.ensure({}, queueName('new'))
      await bench.publish([{}], queueName('new'))
      expect(await firstOf(bench, queueName('new'))).toEqual({ offset: 0, redelivered: false })
      bench.broker.audit()
    },
    TIMEOUT_MS,
  )
})
