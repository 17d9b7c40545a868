/** Schedules of a broker on a log in memory: ticks, crashes, refusals, pauses, and limits. */
import { LIMITS, SluiceError, bindingRequest, queueName } from '@sluice/protocol'
import { describe, expect, it } from 'vitest'
import { Bench, Q, type BenchOptions } from '../testing/bench.js'
import { published, recordFor, schedule, ticks } from '../testing/schedules.js'
import { FIRED_MAX, LATE_MS, SEARCHES_MAX } from './schedules.js'

const START = Date.parse('2026-01-01T00:00:00Z')
const HOUR = 3_600_000

async function opened(options: BenchOptions = {}): Promise<Bench> {
  const bench = new Bench(options)
  bench.now = START
  await bench.open()
  bench.ensure()
  return bench
}

function codeOf(work: () => unknown): string | undefined {
  try {
    work()
    return undefined
  } catch (error) {
    if (error instanceof SluiceError) return error.code
    throw error
  }
}

/** Runs the broker until the time, and stops at each deadline on the way. */
async function runUntil(bench: Bench, timeMs: number): Promise<void> {
  for (;;) {
    const next = Math.min(bench.broker.turn.nextDeadline, timeMs)
    await bench.pass(Math.max(0, next - bench.now))
    if (next === timeMs) return
  }
}

const info = (bench: Bench, name = 's', count = 3): ReturnType<Bench['broker']['schedules']['get']> => {
  bench.broker.turn.begin()
  return bench.broker.schedules.get(name, count)
}

describe('a schedule', () => {
  it('publishes its message at each tick', async () => {
    const bench = await opened()
    const record = recordFor({ key: 'k', priority: 7, ttlMs: 5 * HOUR, id: 'i', headers: { a: 'b' } })
    schedule(bench, 's', { cron: '0 * * * *', record })
    await runUntil(bench, START + HOUR + 1)
    expect(await published(bench)).toEqual([
      {
        offset: 0,
        name: 's',
        tickMs: START + HOUR,
        atMs: START + HOUR,
        options: {
          key: 'k',
          priority: 7,
          ttlMs: 5 * HOUR,
          id: 'i',
          headers: { a: 'b', 'sluice-schedule': 's', 'sluice-tick': String(START + HOUR) },
        },
      },
    ])
  })

  it('delivers the message in the turn of its tick', async () => {
    const bench = await opened()
    const worker = bench.consume(10)
    schedule(bench, 's', { everyMs: 1_000 })
    await runUntil(bench, START + 3_000)
    expect(worker.got.map(({ atMs }) => atMs)).toEqual([START + 1_000, START + 2_000, START + 3_000])
  })

  it('fires at whole intervals from its start, or from its creation', async () => {
    const bench = await opened()
    bench.now += 250
    schedule(bench, 's', { everyMs: 10_000 })
    await runUntil(bench, START + 21_000)
    expect(await ticks(bench)).toEqual([START + 10_250, START + 20_250])
    schedule(bench, 's', { everyMs: 10_000, startMs: START, update: true })
    await runUntil(bench, START + 31_000)
    expect((await ticks(bench)).slice(2)).toEqual([START + 30_000])
    schedule(bench, 's', { everyMs: 10_000, startMs: START + 100_000, update: true })
    await runUntil(bench, START + 101_000)
    expect((await ticks(bench)).slice(3)).toEqual([START + 100_000])
  })

  it('fires once at a single time, and then stays as it is', async () => {
    const bench = await opened()
    schedule(bench, 's', { atMs: START + 5_000 })
    await runUntil(bench, START + HOUR)
    expect(await ticks(bench)).toEqual([START + 5_000])
    // An application ensures its schedules at each start.
    expect(schedule(bench, 's', { atMs: START + 5_000 })).toMatchObject({ created: false, changed: false })
    await bench.crash()
    await runUntil(bench, START + 2 * HOUR)
    expect(await ticks(bench)).toEqual([START + 5_000])
    expect(info(bench)).toMatchObject({ fired: 1, lastTickMs: START + 5_000, nextTicksMs: [] })
  })

  it('fires at once for a time up to a minute past', async () => {
    const bench = await opened()
    schedule(bench, 's', { atMs: START - 60_000 })
    await bench.settle()
    expect(await ticks(bench)).toEqual([START - 60_000])
  })

  it('shows its ticks, its message and what it did', async () => {
    const bench = await opened()
    const record = recordFor({ key: 'k' }, 'body')
    schedule(bench, 's', { cron: '0 3 * * *', timeZone: 'Europe/Berlin', record, missed: 'all' })
    expect(info(bench)).toEqual({
      name: 's',
      cron: '0 3 * * *',
      timeZone: 'Europe/Berlin',
      to: 'q',
      missed: 'all',
      paused: false,
      createdAtMs: START,
      fired: 0,
      lastTickMs: null,
      nextTicksMs: [2, 26, 50].map((hours) => START + hours * HOUR),
      error: null,
      record: Buffer.from(record),
    })
    await runUntil(bench, START + 2 * HOUR)
    expect(info(bench)).toMatchObject({
      fired: 1,
      lastTickMs: START + 2 * HOUR,
      nextTicksMs: [26, 50, 74].map((hours) => START + hours * HOUR),
    })
  })

  it('publishes its message when it is run, and keeps its ticks', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: HOUR })
    bench.now += 1_000
    bench.broker.turn.begin()
    expect(bench.broker.schedules.run('s')).toEqual({ offset: 0 })
    await runUntil(bench, START + HOUR)
    expect(await ticks(bench)).toEqual([START + 1_000, START + HOUR])
    expect(info(bench).fired).toBe(1)
  })

  it('ends when it is deleted', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: 1_000 })
    await runUntil(bench, START + 1_000)
    bench.broker.schedules.delete('s')
    await runUntil(bench, START + HOUR)
    await bench.crash()
    await runUntil(bench, START + 2 * HOUR)
    expect(await ticks(bench)).toEqual([START + 1_000])
    expect(codeOf(() => info(bench))).toBe('SCHEDULE_NOT_FOUND')
    expect(codeOf(() => bench.broker.schedules.delete('s'))).toBe('SCHEDULE_NOT_FOUND')
    expect(codeOf(() => bench.broker.schedules.run('s'))).toBe('SCHEDULE_NOT_FOUND')
  })

  it('counts a tick whose message is a duplicate', async () => {
    const bench = await opened()
    bench.ensure({ unique: 'pending' }, queueName('u'))
    schedule(bench, 's', { everyMs: 1_000, to: 'u', record: recordFor({ id: 'one' }) })
    await runUntil(bench, START + 5_000)
    expect(await ticks(bench, queueName('u'))).toEqual([START + 1_000])
    expect(info(bench)).toMatchObject({ fired: 5, lastTickMs: START + 5_000, error: null })
  })
})

describe('ensure', () => {
  it('compares all settings, and changes them only when told to', async () => {
    const bench = await opened()
    expect(schedule(bench, 's', { everyMs: HOUR })).toMatchObject({ created: true, changed: true })
    bench.now += 5
    expect(schedule(bench, 's', { everyMs: HOUR })).toMatchObject({ created: false, changed: false })
    for (const different of [
      { everyMs: HOUR + 1 },
      { cron: '* * * * *' },
      { everyMs: HOUR, startMs: 1 },
      { everyMs: HOUR, missed: 'all' },
      { everyMs: HOUR, record: recordFor({}, 'other') },
    ])
      expect(codeOf(() => schedule(bench, 's', different))).toBe('SCHEDULE_CONFLICT')
    expect(() => schedule(bench, 's', { everyMs: HOUR, missed: 'all' })).toThrow('`missed` is once, not all')
    expect(schedule(bench, 's', { everyMs: HOUR, missed: 'all', update: true })).toMatchObject({
      created: false,
      changed: true,
      schedule: { missed: 'all', nextTicksMs: [START + HOUR] },
    })
  })

  it('keeps the last tick when only the message changes', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: HOUR })
    await runUntil(bench, START + HOUR + 5)
    const record = recordFor({}, 'other')
    schedule(bench, 's', { everyMs: HOUR, record, update: true })
    expect(info(bench)).toMatchObject({
      fired: 1,
      lastTickMs: START + HOUR,
      nextTicksMs: [2, 3, 4].map((n) => START + n * HOUR),
    })
  })

  it.each([
    ['INVALID_CRON', { cron: '61 * * * *' }],
    ['INVALID_CRON', { cron: 'x'.repeat(LIMITS.cronBytesMax + 1) }],
    ['CRON_NEVER_FIRES', { cron: '0 0 31 2 *' }],
    ['UNKNOWN_TIME_ZONE', { cron: '* * * * *', timeZone: 'Nowhere' }],
    ['INVALID_INTERVAL', { everyMs: LIMITS.everyMsMin - 1 }],
    ['INVALID_INTERVAL', { everyMs: LIMITS.delayMsMax + 1 }],
    ['INVALID_INTERVAL', { everyMs: 1_500.5 }],
    ['AT_IN_THE_PAST', { atMs: START - 60_001 }],
    ['INVALID_DELAY', { atMs: START + LIMITS.delayMsMax + HOUR }],
    ['OPTION_CONFLICT', { everyMs: HOUR, atMs: START }],
    ['OPTION_CONFLICT', { everyMs: HOUR, timeZone: 'UTC' }],
    ['OPTION_CONFLICT', { cron: '* * * * *', startMs: START }],
    ['INVALID_ARGUMENT', { missed: 'once' }],
    ['INVALID_ARGUMENT', { everyMs: HOUR, missed: 'never' }],
    ['QUEUE_NOT_FOUND', { everyMs: HOUR, to: 'nowhere' }],
    ['INVALID_NAME', { everyMs: HOUR, to: '-' }],
    ['OPTION_CONFLICT', { everyMs: HOUR, record: recordFor({ delayMs: 1 }) }],
    ['BATCH_MALFORMED', { everyMs: HOUR, record: new Uint8Array(3) }],
    ['MESSAGE_TOO_LARGE', { everyMs: HOUR, record: recordFor({}, 'x'.repeat(LIMITS.scheduleBytesMax + 1)) }],
    ['MESSAGE_TOO_LARGE', { everyMs: HOUR, record: recordFor({}, 'x'.repeat(1_024)) }],
    ['SCHEDULE_NOT_FOUND', { paused: true }],
  ])('case %# is refused with %s, and nothing is written', async (code, fields) => {
    const bench = await opened()
    await bench.pass(5_000)
    const before = bench.broker.usage().writtenBytes
    expect(codeOf(() => schedule(bench, 's', fields))).toBe(code)
    await bench.settle()
    expect(bench.broker.usage().writtenBytes).toBe(before)
    expect(bench.broker.schedules.list('', 10).schedules).toEqual([])
  })

  it('allows an interval and a message up to their limits', async () => {
    const bench = await opened({ messageBytesMax: 1 << 17 })
    const record = recordFor({}, 'x'.repeat(LIMITS.scheduleBytesMax))
    schedule(bench, 'a', { everyMs: LIMITS.everyMsMin, record })
    schedule(bench, 'b', { everyMs: LIMITS.delayMsMax })
    await runUntil(bench, START + 1_000)
    expect(await ticks(bench)).toEqual([START + 1_000])
    await bench.crash()
    expect(info(bench, 'a').record!.length).toBe(record.length)
  })

  it('limits the number of schedules, and lists them by name', async () => {
    const bench = await opened({ schedulesMax: 3 })
    for (const name of ['c', 'a', 'b']) schedule(bench, name, { everyMs: HOUR })
    expect(codeOf(() => schedule(bench, 'd', { everyMs: HOUR }))).toBe('TOO_MANY_DEFINITIONS')
    const { schedules } = bench.broker
    const names = (after: string, limit: number): unknown => {
      const page = schedules.list(after, limit)
      return [page.schedules.map(({ name }) => name), page.more]
    }
    expect(names('', 2)).toEqual([['a', 'b'], true])
    expect(names('b', 2)).toEqual([['c'], false])
    expect(names('c', 2)).toEqual([[], false])
    schedules.delete('b')
    schedule(bench, 'd', { everyMs: HOUR })
    expect(names('', 9)).toEqual([['a', 'c', 'd'], false])
  })
})

describe('ticks that are missed', () => {
  async function afterDowntime(missed: string, downMs: number): Promise<[number[], Bench]> {
    const bench = await opened()
    schedule(bench, 's', { everyMs: HOUR, missed })
    await runUntil(bench, START + HOUR)
    bench.now += downMs
    await bench.crash()
    await bench.settle()
    return [(await ticks(bench)).map((tick) => (tick - START) / HOUR), bench]
  }

  it('fire all with `all`', async () => {
    expect((await afterDowntime('all', 5 * HOUR + 10))[0]).toEqual([1, 2, 3, 4, 5, 6])
  })

  it('fire once, for the latest of them, with `once`', async () => {
    const [found, bench] = await afterDowntime('once', 5 * HOUR + 2 * LATE_MS)
    expect(found).toEqual([1, 6])
    await runUntil(bench, START + 8 * HOUR)
    expect((await ticks(bench)).length).toBe(4)
  })

  it('do not fire with `skip`, unless the latest is less than a minute late', async () => {
    const [late, bench] = await afterDowntime('skip', 5 * HOUR + LATE_MS + 1)
    expect(late).toEqual([1])
    await runUntil(bench, START + 7 * HOUR)
    expect((await ticks(bench)).length).toBe(2)
    expect((await afterDowntime('skip', 5 * HOUR + LATE_MS))[0]).toEqual([1, 6])
  })

  it('are found in no more time if there are millions', async () => {
    const bench = await opened()
    schedule(bench, 'once', { cron: '* * * * * *' })
    schedule(bench, 'skip', { cron: '* * * * * *', missed: 'skip' })
    await bench.settle()
    bench.now += 1000 * 24 * HOUR
    await bench.crash()
    await bench.settle()
    expect(await ticks(bench)).toEqual([bench.now, bench.now])
  })
})

describe('a target that refuses', () => {
  it('gets the message later, and the schedule shows the reason', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 })
    schedule(bench, 's', { everyMs: 100_000, missed: 'all' })
    await runUntil(bench, START + 100_000)
    await runUntil(bench, START + 201_500)
    expect(info(bench)).toMatchObject({
      fired: 1,
      nextTicksMs: [START + 200_000, START + 300_000, START + 400_000],
      error: { sinceMs: START + 200_000, tries: 2 },
    })
    expect(info(bench).error!.message).toContain('The queue q holds 1 messages')
    expect(await bench.drain()).toEqual([0])
    await runUntil(bench, START + 203_000)
    expect(await ticks(bench)).toEqual([START + 200_000])
    expect(info(bench)).toMatchObject({ fired: 2, error: null })
  })

  it('is tried again less often, and at least once a minute', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 })
    await bench.publish([{}])
    schedule(bench, 's', { atMs: START + 1_000 })
    await runUntil(bench, START + HOUR)
    const { tries } = info(bench).error!
    expect(tries).toBeGreaterThan(60)
    expect(tries).toBeLessThan(70)
  })

  it('follows `missed` when ticks accumulate', async () => {
    const bench = await opened()
    bench.ensure({ maxMessages: 1 })
    await bench.publish([{}])
    schedule(bench, 'all', { everyMs: HOUR, missed: 'all' })
    schedule(bench, 'once', { everyMs: HOUR, missed: 'once' })
    schedule(bench, 'skip', { everyMs: HOUR, missed: 'skip' })
    await runUntil(bench, START + 5.5 * HOUR)
    bench.ensure({ maxMessages: 0, overflow: 'reject' })
    await runUntil(bench, START + 5.6 * HOUR)
    const found = (await published(bench))
      .slice(1)
      .map(({ name, tickMs }) => `${name} ${(tickMs - START) / HOUR}`)
    expect(found.toSorted()).toEqual(['all 1', 'all 2', 'all 3', 'all 4', 'all 5', 'once 5'])
  })

  it('can be deleted and created again', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: HOUR })
    bench.broker.catalog.delete(Q)
    await runUntil(bench, START + HOUR)
    expect(info(bench).error!.message).toBe('There is no queue "q".')
    await bench.crash()
    await bench.settle()
    expect(info(bench).error!.tries).toBe(1)
    bench.ensure()
    await runUntil(bench, START + HOUR + LATE_MS)
    expect(await ticks(bench)).toEqual([START + HOUR])
  })
})

describe('a topic', () => {
  const bind = ({ broker }: Bench, name: string, pattern: string): void => {
    broker.turn.begin()
    broker.topics.bind(bindingRequest('BIND', { pattern, target: name }))
  }

  it('gets the message of a tick in each target, exactly once', async () => {
    const bench = await opened({ keepsSnapshots: true })
    const names = ['q', 'r'].map(queueName)
    for (const name of names) {
      bench.ensure({}, name)
      bind(bench, name, 'jobs.#')
    }
    schedule(bench, 's', { everyMs: 1_000, missed: 'all', to: '#jobs.daily' })
    await bench.settle()
    bench.snapshots.length = 0
    await runUntil(bench, START + 5_000)
    expect(bench.snapshots.length).toBeGreaterThanOrEqual(5)
    const expected = Array.from({ length: 5 }, (_, at) => START + (at + 1) * 1_000)
    for (const log of bench.snapshots) {
      const other = new Bench()
      other.now = START
      await other.restart(log)
      await runUntil(other, START + 5_000)
      for (const name of names) expect(await ticks(other, name)).toEqual(expected)
      other.broker.audit()
    }
    bench.broker.turn.begin()
    expect(bench.broker.schedules.run('s')).toEqual({ targets: 2 })
  })

  it('refuses a tick that matches nothing, unless the address drops it', async () => {
    const bench = await opened()
    schedule(bench, 'kept', { everyMs: HOUR, to: '#jobs' })
    schedule(bench, 'dropped', { everyMs: HOUR, to: '#?jobs' })
    await runUntil(bench, START + HOUR)
    expect(info(bench, 'kept').error!.message).toContain('No binding matches the topic jobs')
    expect(info(bench, 'dropped')).toMatchObject({ fired: 1, error: null })
    bench.broker.turn.begin()
    expect(bench.broker.schedules.run('dropped')).toEqual({ targets: 0 })
    await bench.settle()
    await bench.crash()
    expect(info(bench, 'dropped')).toMatchObject({
      fired: 1,
      nextTicksMs: [2, 3, 4].map((n) => START + n * HOUR),
    })
    bind(bench, 'q', 'jobs')
    await runUntil(bench, START + HOUR + LATE_MS)
    expect(await ticks(bench)).toEqual([START + HOUR])
  })

  it('must have a valid name', async () => {
    const bench = await opened()
    expect(codeOf(() => schedule(bench, 's', { everyMs: HOUR, to: '#' }))).toBe('INVALID_TOPIC')
    expect(codeOf(() => schedule(bench, 's', { everyMs: HOUR, to: '#a.*' }))).toBe('INVALID_TOPIC')
  })
})

describe('a pause', () => {
  it('lets ticks pass, which then are not missed', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: HOUR, missed: 'all' })
    await runUntil(bench, START + HOUR)
    expect(schedule(bench, 's', { paused: true })).toMatchObject({ changed: true })
    expect(schedule(bench, 's', { paused: true })).toMatchObject({ changed: false })
    expect(info(bench)).toMatchObject({ paused: true, nextTicksMs: [] })
    await runUntil(bench, START + 3.5 * HOUR)
    await bench.crash()
    await bench.settle()
    expect(schedule(bench, 's', { paused: false })).toMatchObject({ changed: true })
    await bench.settle()
    await bench.crash()
    await runUntil(bench, START + 5 * HOUR)
    expect((await ticks(bench)).map((tick) => (tick - START) / HOUR)).toEqual([1, 4, 5])
  })

  it('can be set when the schedule is created', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: HOUR, paused: true })
    await runUntil(bench, START + 2 * HOUR)
    // Without `paused`, the pause stays.
    expect(schedule(bench, 's', { everyMs: HOUR })).toMatchObject({ changed: false })
    expect(await ticks(bench)).toEqual([])
  })
})

describe('turns', () => {
  it('publish a limited number of messages, whatever is due', async () => {
    const bench = await opened()
    const count = FIRED_MAX * 3 + 1
    for (let at = 0; at < count; at++) schedule(bench, `s${at}`, { atMs: START + 1_000 })
    await bench.settle()
    bench.now = START + 1_000
    bench.broker.turn.tick()
    const published: number[] = []
    while (bench.endTurns() > 0) published.push(bench.info().published)
    expect(published.slice(0, 4)).toEqual([1, 2, 3, 3].map((n, at) => (at === 3 ? count : n * FIRED_MAX)))
    expect(published.at(-1)).toBe(count)
  })

  it('end earlier if the schedules have missed many ticks, because the last one is searched', async () => {
    const bench = await opened()
    for (let at = 0; at < FIRED_MAX; at++) schedule(bench, `s${at}`, { cron: '0 9 * * 1-5', missed: 'once' })
    await bench.settle()
    bench.now += 30 * 24 * HOUR
    bench.broker.turn.tick()
    bench.endTurns()
    expect(bench.info().published).toBeGreaterThan(0)
    expect(bench.info().published).toBeLessThan(SEARCHES_MAX / 8)
    await bench.settle()
    expect(bench.info().published).toBe(FIRED_MAX)
  })

  it('serve other schedules while one has many missed ticks', async () => {
    const bench = await opened()
    schedule(bench, 'many', { everyMs: 1_000, missed: 'all' })
    schedule(bench, 'one', { everyMs: 2_000_000, missed: 'all' })
    bench.now += 2_000_000
    bench.broker.turn.tick()
    bench.endTurns()
    const first = await published(bench)
    expect(first.filter(({ name }) => name === 'one').length).toBe(1)
    await bench.settle()
    expect((await published(bench)).length).toBe(2_001)
  })

  it('write nothing between two ticks', async () => {
    const bench = await opened()
    schedule(bench, 's', { everyMs: 10 * HOUR })
    schedule(bench, 'p', { everyMs: 1_000, paused: true })
    await bench.pass(5_000)
    await bench.pass(5_000)
    const before = bench.broker.usage().writtenBytes
    await runUntil(bench, START + 9 * HOUR)
    expect(bench.broker.usage().writtenBytes).toBe(before)
  })
})

describe('a crash', () => {
  it('at any entry fires each tick exactly once', async () => {
    const bench = await opened({ keepsSnapshots: true })
    for (const [name, everyMs] of [
      ['a', 1_000],
      ['b', 1_700],
      ['c', 2_300],
    ] as const)
      schedule(bench, name, { everyMs, missed: 'all' })
    const expected = (untilMs: number): string[] =>
      [
        ['a', 1_000],
        ['b', 1_700],
        ['c', 2_300],
      ].flatMap(([name, every]) =>
        Array.from(
          { length: Math.floor((untilMs - START) / Number(every)) },
          (_, n) => `${name} ${START + (n + 1) * Number(every)}`,
        ),
      )
    await bench.settle()
    bench.snapshots.length = 0
    const end = START + 12_000
    await runUntil(bench, end)
    expect(bench.snapshots.length).toBeGreaterThan(15)
    for (const log of bench.snapshots) {
      const other = new Bench()
      other.now = START
      await other.restart(log)
      await runUntil(other, end)
      const found = (await published(other)).map(({ name, tickMs }) => `${name} ${tickMs}`)
      expect(found.toSorted()).toEqual(expected(end).toSorted())
      other.broker.audit()
    }
  })

  it('keeps a schedule over checkpoints', async () => {
    const bench = await opened({ segmentBytes: 1 << 17, checkpointBytes: 1 << 14 })
    schedule(bench, 's', { everyMs: HOUR, missed: 'all' })
    let hasCheckpoint = false
    for (let hour = 1; hour <= 20; hour++) {
      await runUntil(bench, START + hour * HOUR)
      await bench.fill(1 << 16)
      hasCheckpoint = (await bench.crash()) || hasCheckpoint
    }
    expect(hasCheckpoint).toBe(true)
    expect((await ticks(bench)).map((tick) => (tick - START) / HOUR).slice(0, 20)).toEqual(
      Array.from({ length: 20 }, (_, at) => at + 1),
    )
    expect(info(bench).fired).toBeGreaterThanOrEqual(20)
    bench.broker.audit()
  })
})
