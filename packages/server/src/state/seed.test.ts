/** The seed of the hashes of ids and keys, which is drawn once for each log. */
import { queueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench } from '../testing/bench.js'

const WINDOW = queueName('window')
const PENDING = queueName('pending')

/** A bench whose random numbers differ from call to call, so that no two draws give the same seed. */
function benchWithRandom(): Bench {
  let draws = 0
  return new Bench({
    segmentBytes: 128 << 10,
    checkpointBytes: 16 << 10,
    random: () => (++draws * 0.618) % 1,
  })
}

/** Publishes ids and keys that the broker already knows. With another seed, all of them would have other hashes. */
async function expectKnown(bench: Bench): Promise<void> {
  for (const queue of [WINDOW, PENDING]) {
    expect((await bench.publish([{ id: 'a' }], queue)).duplicates).toEqual(new Map([[0, 0]]))
    // The first message of the key is ready. A second line for the same key would make another message ready.
    await bench.publish([{ key: 'k' }], queue)
    const worker = bench.consume(100, { name: queue })
    await bench.settle()
    expect(worker.offsets).toEqual([0, 1])
    worker.leave()
    await bench.settle()
  }
}

describe('the seed', () => {
  it('is the same after restarts without a checkpoint, with one, and without the first segment', async () => {
    const bench = await benchWithRandom().open()
    bench.ensure({}, WINDOW)
    bench.ensure({ unique: 'pending' }, PENDING)
    for (const queue of [WINDOW, PENDING]) await bench.publish([{ id: 'a' }, { key: 'k' }], queue)
    for (let restart = 0; restart < 3; restart++) {
      expect(await bench.crash()).toBe(false)
      await expectKnown(bench)
    }
    await bench.broker.close()
    expect(await bench.crash()).toBe(false)
    await expectKnown(bench)

    await bench.fill(200_000)
    expect(await bench.crash()).toBe(true)
    await expectKnown(bench)

    await bench.fill(600_000)
    expect(bench.log.usage().firstPosition).toBeGreaterThanOrEqual(2 * (128 << 10))
    for (let restart = 0; restart < 2; restart++) {
      expect(await bench.crash()).toBe(true)
      await expectKnown(bench)
      await bench.fill(200_000)
    }
  })

  it('differs between two logs', async () => {
    const wordsOf = async (bench: Bench): Promise<Uint32Array> => {
      await bench.open()
      bench.ensure({ unique: 'pending' }, PENDING)
      await bench.publish([{ id: 'a' }], PENDING)
      return bench.broker.catalog.queue(PENDING).uniqueIdOf(0)!.slice()
    }
    const random = (): number => 0.25
    expect(await wordsOf(new Bench({ random }))).toEqual(await wordsOf(new Bench({ random })))
    expect(await wordsOf(new Bench({ random }))).not.toEqual(await wordsOf(new Bench()))
  })
})
