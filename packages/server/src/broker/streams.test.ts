/** Streams: what is kept, what is refused, and what a restart keeps. */
import { queueName, type QueueName, type StreamOptions } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { runs } from '../../../../test/amount.js'
import { CHUNK_MESSAGES } from '../queue/index.js'
import { Bench, CALLER, type Message } from '../testing/bench.js'
import { numbered, peeked, share, upTo } from '../testing/sharing.js'
import type { ReplayResult } from './replays.js'

const CLICKS = queueName('clicks')
const JOBS = queueName('jobs')
const OUT = queueName('out')
const HOUR = 3_600_000
const SMALL = { segmentBytes: 64 * 1024, checkpointBytes: 16 * 1024 }
const RECORD = 908

async function opened(options: Partial<StreamOptions> = {}): Promise<Bench> {
  const bench = await new Bench(SMALL).open()
  ensureStream(bench, options)
  return bench
}

function ensureStream(bench: Bench, options: Partial<StreamOptions> = {}, name: QueueName = CLICKS): void {
  bench.broker.turn.begin()
  bench.broker.streams.ensure({ name, options, update: true })
}

const info = (bench: Bench): ReturnType<Bench['broker']['streams']['info']> => {
  bench.broker.turn.begin()
  return bench.broker.streams.info(CLICKS)
}

/** Publishes this number of messages, in batches of 20. */
async function fill(bench: Bench, count: number, bodyBytes = 900): Promise<void> {
  for (let left = count; left > 0; left -= 20) {
    await bench.publish(
      upTo(Math.min(left, 20)).map(() => ({ bodyBytes })),
      CLICKS,
    )
    await bench.pass(1)
  }
}

/** The messages of the stream, in order: offset and number. They are copied to a queue. */
async function contents(bench: Bench): Promise<number[]> {
  bench.ensure({}, OUT)
  let cursor: string | undefined
  do {
    bench.broker.turn.begin()
    const from = { fromOffset: undefined, fromMs: undefined, untilMs: undefined, cursor }
    const request = { name: CLICKS, ...from, limit: 1000, filter: {}, to: OUT, dryRun: false }
    const page: ReplayResult = await bench.answer(bench.broker.replays.page(request, CALLER))
    cursor = page.cursor ?? undefined
    await bench.settle()
  } while (cursor !== undefined)
  const numbers = (await peeked(bench, OUT)).map(([, number]) => number)
  bench.broker.turn.begin()
  bench.broker.catalog.delete(OUT)
  await bench.settle()
  return numbers
}

const refused = (code: string, message: string): object =>
  expect.objectContaining({ code, message: expect.stringContaining(message) as unknown })

describe('a name', () => {
  it('is a queue or a stream, and each call says what it needs', async () => {
    const bench = await opened({ retainMessages: 5 })
    bench.ensure({}, JOBS)
    const { catalog, streams, leases, operator } = bench.broker
    expect(() => bench.ensure({}, CLICKS)).toThrow(refused('WRONG_KIND', 'clicks is a stream, not a queue'))
    expect(() => ensureStream(bench, {}, JOBS)).toThrow(
      refused('WRONG_KIND', 'jobs is a queue, not a stream'),
    )
    const wrong = refused('WRONG_KIND', 'clicks is a stream')
    const subscription = { queue: CLICKS, messages: 1, bytes: 1, processingTimeoutMs: undefined }
    expect(() => leases.subscribe(subscription, 1, undefined as never)).toThrow(
      refused('WRONG_KIND', 'Read it, or consume it through a group.'),
    )
    for (const call of [
      () => catalog.info(CLICKS),
      () => catalog.delete(CLICKS),
      () => catalog.purge(CLICKS),
      () => catalog.pause(CLICKS),
      () => catalog.resume(CLICKS),
      () => catalog.consumers({ name: CLICKS, from: 0 }),
      () => leases.closeConsumer(CLICKS, 1),
      () => operator.cancel({ name: CLICKS, offset: 0, id: undefined }),
    ])
      expect(call).toThrow(wrong)
    for (const call of [() => streams.info(JOBS), () => streams.delete(JOBS)])
      expect(call).toThrow(refused('WRONG_KIND', 'jobs is a queue, not a stream'))
    expect(catalog.list('', 10).queues.map(({ name }) => name)).toEqual([JOBS])
    expect(streams.list('', 10)).toMatchObject({ streams: [{ name: CLICKS }], more: false })
    expect(info(bench)).toMatchObject({ options: { retainMessages: 5, retainAgeMs: 0 }, next: 0, first: 0 })
    await bench.settle()
    await bench.crash()
    expect(info(bench)).toMatchObject({ options: { retainMessages: 5, retainAgeMs: 0 }, next: 0, first: 0 })
  })

  it('can be given to another kind after its deletion', async () => {
    const bench = await opened()
    await fill(bench, 3000)
    await bench.fill(100_000)
    bench.broker.turn.begin()
    expect(bench.broker.streams.delete(CLICKS)).toBe(3000)
    await bench.settle()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
    bench.ensure({}, CLICKS)
    await bench.publish([{}], CLICKS)
    await bench.crash()
    expect(bench.info(CLICKS)).toMatchObject({ ready: 1 })
  })
})

describe('the options of a stream', () => {
  it('are compared when it exists, and changed with `update`', async () => {
    const bench = await opened({ retainBytes: 1000 })
    const ensure = (options: Partial<StreamOptions>, update: boolean): object =>
      bench.broker.streams.ensure({ name: CLICKS, options, update })
    expect(ensure({ retainBytes: 1000 }, false)).toMatchObject({ created: false })
    expect(() => ensure({ retainMessages: 7 }, false)).toThrow(
      refused('QUEUE_CONFLICT', 'The stream clicks exists with other options: `retainMessages` is 0, not 7.'),
    )
    ensure({ retainMessages: 7 }, true)
    await bench.settle()
    await bench.crash()
    expect(info(bench).options).toMatchObject({ retainMessages: 7, retainBytes: 1000 })
  })
})

describe('a message of a stream', () => {
  it('is kept when it is accepted, and memory does not follow the length of the stream', async () => {
    const bench = await opened()
    const count = 20 * CHUNK_MESSAGES + 100
    for (let done = 0; done < count; done += 100)
      await bench.publish(
        upTo(Math.min(done + 100, count), done).map((number) => numbered(number)),
        CLICKS,
      )
    const { bytes } = info(bench)
    for (let restarts = 0; restarts < 2; restarts++) {
      await bench.fill(60_000)
      const stream = bench.broker.catalog.queue(CLICKS)
      expect([...stream.heldChunks()].length).toBeLessThanOrEqual(2)
      expect(info(bench)).toMatchObject({ messages: count, bytes, first: 0, next: count, published: count })
      bench.broker.audit()
      expect(await contents(bench)).toEqual(upTo(count))
      await bench.crash()
    }
  })

  it('may have a key, an id and headers, but no delay, priority or time to live', async () => {
    const bench = await opened()
    await bench.publish([{ key: 'k', id: 'a', headers: { number: '0' } }], CLICKS)
    const publish = (message: Message) => (): unknown => bench.put([{}, message], CLICKS)
    for (const [option, message] of [
      ['delay', { delayMs: 5 }],
      ['delay', { atMs: bench.now + 5 }],
      ['priority', { priority: 1 }],
      ['ttl', { ttlMs: 5 }],
    ] as const) {
      expect(publish(message)).toThrow(
        refused('OPTION_UNSUPPORTED', `Message 1 has a \`${option}\`; the stream clicks does not support`),
      )
      bench.ensure({}, JOBS)
      expect(() => share(bench, [{}, message], [{ name: JOBS }, { name: CLICKS }])).toThrow(
        refused('OPTION_UNSUPPORTED', `Message 1 has a \`${option}\``),
      )
    }
    expect(bench.info(JOBS).published).toBe(0)
    expect(await contents(bench)).toEqual([0])
  })

  it('is not kept if its id is known, also after a restart', async () => {
    const bench = await opened({ dedupWindowMs: HOUR })
    const withIds = (...ids: number[]): Message[] => ids.map((id) => numbered(id, { id: `id-${id}` }))
    await bench.publish(withIds(0, 1, 1, 2), CLICKS)
    await bench.crash()
    await bench.publish(withIds(1, 2), CLICKS)
    await bench.publish(withIds(2, 3), CLICKS)
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(info(bench)).toMatchObject({ messages: 4, duplicates: 4, published: 4, next: 8 })
      expect(await contents(bench)).toEqual([0, 1, 2, 3])
      bench.broker.audit()
      await bench.fill(100_000)
      await bench.crash()
    }
    await bench.pass(HOUR + 1)
    await bench.publish(withIds(3), CLICKS)
    expect(info(bench)).toMatchObject({ messages: 5, duplicates: 4 })
  })

  it('is stored once with the queues that get it too', async () => {
    const bench = await opened({ retainMessages: 1 })
    bench.ensure({}, JOBS)
    for (let done = 0; done < 3000; done += 50)
      share(
        bench,
        upTo(done + 50, done).map((number) => numbered(number)),
        [{ name: CLICKS }, { name: JOBS, ranges: [{ index: 10, count: 5 }] }],
      )
    await bench.settle()
    await bench.fill(60_000)
    const { first } = info(bench)
    expect(first).toBe(2 * CHUNK_MESSAGES)
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(await contents(bench)).toEqual(upTo(3000, first))
      expect(bench.info(JOBS)).toMatchObject({ ready: 300 })
      bench.broker.audit()
      await bench.crash()
      await bench.fill(60_000)
    }
    bench.broker.turn.begin()
    bench.broker.streams.delete(CLICKS)
    expect(await bench.drain(JOBS)).toEqual(upTo(300))
    await bench.settle()
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
  })
})

describe('retention of a stream', () => {
  it.each([
    ['retainMessages', 1500],
    ['retainBytes', 1500 * RECORD],
  ] as const)('by %s keeps at most one chunk too much', async (option, limit) => {
    const bench = await opened({ [option]: limit })
    await fill(bench, 5000)
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(info(bench)).toMatchObject({ first: 3 * CHUNK_MESSAGES, messages: 5000 - 3 * CHUNK_MESSAGES })
      bench.broker.audit()
      await bench.crash()
      await bench.fill(300_000)
    }
    const { bytes } = bench.log.usage()
    expect(bytes).toBeLessThan(2 * 2000 * RECORD + 6 * SMALL.segmentBytes)
    ensureStream(bench, { [option]: 1 })
    await bench.pass(10)
    expect(info(bench).first).toBe(4 * CHUNK_MESSAGES)
  })

  it('by age releases messages without a new one, and writes nothing afterwards', async () => {
    const bench = await opened({ retainAgeMs: HOUR })
    await fill(bench, 3000)
    await bench.fill(100_000)
    await bench.crash()
    await bench.pass(HOUR / 2)
    expect(info(bench)).toMatchObject({ messages: 3000 })
    await bench.pass(HOUR / 2)
    await bench.pass(10)
    expect(info(bench)).toMatchObject({ messages: 0, bytes: 0, first: 3000 })
    bench.broker.audit()
    expect(bench.broker.usage().liveBytes).toBe(0)
    await bench.fill(100_000)
    await bench.crash()
    expect(info(bench)).toMatchObject({ messages: 0, bytes: 0, first: 3000 })
    await bench.publish([{}], CLICKS)
    expect(info(bench)).toMatchObject({ messages: 1, first: 3000, next: 3001 })
  })

  it('does not reach messages that arrive in the turn of the release, also after a restart', async () => {
    const bench = await opened({ retainAgeMs: HOUR })
    await fill(bench, 20)
    bench.now += 2 * HOUR
    bench.broker.turn.tick()
    expect(info(bench)).toMatchObject({ messages: 0, next: 20 })
    const { baseOffset } = bench.put([numbered(1), numbered(2)], CLICKS)
    expect(baseOffset).toBe(20)
    await bench.settle()
    for (let restarts = 0; restarts < 2; restarts++) {
      expect(info(bench)).toMatchObject({ messages: 2, next: 22 })
      expect(await contents(bench)).toEqual([1, 2])
      await bench.crash()
    }
  })

  it('is the same with restarts, copies and changes of options in between', async () => {
    let released = 0
    let restarts = 0
    for (let seed = 1; seed <= runs(12, 200); seed++) {
      let state = seed
      const random = (below: number): number => {
        state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
        return Math.floor((state / 2 ** 32) * below)
      }
      const bench = await opened()
      bench.ensure({}, JOBS)
      const kept: number[] = []
      let next = 0
      const known = new Set<number>()
      for (let step = 0; step < 30; step++) {
        const what = random(12)
        if (what < 7) {
          const messages = upTo(random(2) === 0 ? random(20) + 1 : random(300) + 1).map(() => {
            const id = random(3) === 0 ? random(40) : undefined
            const offset = next++
            if (id === undefined || !known.has(id)) kept.push(offset)
            if (id !== undefined) known.add(id)
            return numbered(offset, id === undefined ? {} : { id: String(id) })
          })
          if (random(4) === 0) {
            share(bench, messages, [{ name: CLICKS }, { name: JOBS }])
            await bench.settle()
          } else await bench.publish(messages, CLICKS)
        } else if (what < 9) {
          await bench.crash()
          restarts++
        } else if (what < 10) {
          await bench.fill(random(60_000))
          if (random(2) === 0) await bench.drain(JOBS)
        } else if (what < 11) ensureStream(bench, { retainMessages: random(2) * (1 + random(4000)) })
        else ensureStream(bench, { retainBytes: random(2) * (1 + random(200_000)) })
        await bench.pass(1 + random(30))
        bench.broker.audit()
        const { first, messages, options } = info(bench)
        while (kept.length > 0 && kept[0]! < first) {
          kept.shift()
          released++
        }
        expect(messages, `seed ${seed}, step ${step}`).toBe(kept.length)
        const { retainMessages } = options
        if (retainMessages > 0) expect(messages).toBeLessThanOrEqual(retainMessages + CHUNK_MESSAGES)
      }
      expect(await contents(bench), `seed ${seed}`).toEqual(kept)
    }
    expect(released).toBeGreaterThan(1000)
    expect(restarts).toBeGreaterThan(20)
  })
})
