/**
 * A simulated year of schedules, with crashes, downtime, pauses, deletions and a queue that is full at times. Each message
 * is compared with a calendar of its own: the ticks that its schedule must have, computed in another way than the broker
 * computes them. Planted mistakes must be found.
 */
import { afterEach, describe, expect, it, vi } from 'vitest'
import { BATCH_TYPE, queueName, type QueueName } from '@sluice/protocol'
import { IS_LONG, ONE_SEED, TIMEOUT_MS, seedsFrom } from '../../../../test/amount.js'
import { Chance } from '../../../../test/simulation/chance.js'
import { FACT, FactBuffer } from '../queue/index.js'
import { Definitions } from '../state/definitions.js'
import { Bench, type BenchOptions } from '../testing/bench.js'
import { published, schedule } from '../testing/schedules.js'
import { LATE_MS } from './schedules.js'
import { Writer } from './writer.js'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR
const START = Date.parse('2026-01-01T00:00:00Z')

/** Gets the messages of schedules whose ticks all fire; it is full at times. */
const ALL = queueName('all')
/** Gets the messages of the other schedules. */
const FEW = queueName('few')

/** Expressions, and whether the start of a minute is a tick. */
const CRONS: readonly (readonly [string, (time: Date) => boolean])[] = [
  ['15 */6 * * *', (time) => time.getUTCMinutes() === 15 && time.getUTCHours() % 6 === 0],
  ['30 3 * * 1', (time) => time.getUTCMinutes() === 30 && time.getUTCHours() === 3 && time.getUTCDay() === 1],
  [
    '0 0 1,15 * *',
    (time) => time.getUTCMinutes() + time.getUTCHours() === 0 && [1, 15].includes(time.getUTCDate()),
  ],
  [
    '*/20 9 10 * *',
    (time) => time.getUTCMinutes() % 20 === 0 && time.getUTCHours() === 9 && time.getUTCDate() === 10,
  ],
]

interface Calendar {
  readonly cron: string
  readonly ticks: readonly number[]
}

/** The broker runs for a few minutes after the year, so calendars go on for this time. */
const AFTER_MS = HOUR

/** Ticks of each expression in the year. */
function calendarsOf(days: number): Calendar[] {
  const minutes = Array.from(
    { length: (days * DAY + AFTER_MS) / MINUTE + 1 },
    (_, minute) => START + minute * MINUTE,
  )
  return CRONS.map(([cron, matches]) => ({ cron, ticks: minutes.filter((time) => matches(new Date(time))) }))
}

interface Planned {
  readonly name: string
  readonly missed: 'skip' | 'once' | 'all'
  readonly fields: Readonly<Record<string, unknown>>
  /** All ticks from the creation to the end of the year. */
  readonly ticks: readonly number[]
  /** Ticks of these times do not fire: from the pause to the resume. */
  readonly pauses: [fromMs: number, untilMs: number][]
  /** Ticks from this time on do not fire, because the schedule was deleted. */
  endMs: number
  readonly fired: { readonly tickMs: number; readonly atMs: number }[]
}

interface YearOptions {
  readonly schedules: number
  readonly days: number
  readonly crashes: number
  readonly bench?: BenchOptions
  /** Mean number of ticks of a schedule with an interval. */
  readonly ticks?: number
  /** Minimum time between two turns. Default: none. */
  readonly stepMs?: number
}

interface YearCounts {
  fired: number
  late: number
  passedOver: number
  crashes: number
  pauses: number
  deletions: number
  refusals: number
}

class ScheduleYear {
  readonly #chance: Chance
  readonly #options: YearOptions
  readonly #bench: Bench
  readonly #planned = new Map<string, Planned>()
  readonly #endMs: number
  /** Times at which everything that was due had fired and was durable. */
  readonly #settledMs: number[] = []
  /** Ticks of all schedules, in ascending order. */
  #ticks: number[] = []
  #fullUntilMs = 0
  readonly counts: YearCounts = {
    fired: 0,
    late: 0,
    passedOver: 0,
    crashes: 0,
    pauses: 0,
    deletions: 0,
    refusals: 0,
  }

  constructor(chance: Chance, options: YearOptions) {
    this.#chance = chance
    this.#options = options
    this.#bench = new Bench({ segmentBytes: 4 << 20, ...options.bench })
    this.#bench.now = START
    this.#endMs = START + options.days * DAY
  }

  /** @throws Error that names the first tick that is wrong */
  async run(): Promise<YearCounts> {
    const bench = await this.#bench.open()
    bench.ensure({}, ALL)
    bench.ensure({}, FEW)
    this.#plan()
    for (const [name, { fields }] of this.#planned) schedule(bench, name, fields)
    await this.#settle()
    const crashEveryMs = (this.#endMs - START) / (this.#options.crashes + 1)
    for (let nextCrash = START + crashEveryMs; bench.now < this.#endMs;) {
      const isCrash = bench.now >= nextCrash
      if (isCrash) nextCrash += crashEveryMs
      await (isCrash ? this.#crash() : this.#step(Math.min(nextCrash, this.#endMs)))
    }
    // Time passes until the last refused tick was tried again.
    bench.ensure({ maxMessages: 0, overflow: 'reject' }, ALL)
    for (let minute = 0; minute < 3; minute++) await bench.pass(MINUTE)
    await this.#settle()
    await this.#collect()
    for (const planned of this.#planned.values()) this.#check(planned)
    bench.broker.audit()
    return this.counts
  }

  #plan(): void {
    const { schedules, days, ticks = 20 } = this.#options
    const calendars = calendarsOf(days)
    for (let at = 0; at < schedules; at++) {
      const missed = this.#chance.pick(['all', 'all', 'once', 'skip'] as const)
      const to = missed === 'all' ? ALL : FEW
      const plan = (fields: object, all: readonly number[]): void =>
        void this.#planned.set(`s${at}`, {
          name: `s${at}`,
          missed,
          fields: { ...fields, missed, to },
          ticks: all.filter((tick) => tick > START),
          pauses: [],
          endMs: Infinity,
          fired: [],
        })
      const kind = this.#chance.int(0, 9)
      if (kind === 0) {
        const atMs = START + this.#chance.int(1, days * DAY)
        plan({ atMs }, [atMs])
      } else if (kind <= 2) {
        const { cron, ticks } = this.#chance.pick(calendars)
        plan({ cron }, ticks)
      } else {
        const everyMs = this.#chance.int(1_000, (2 * days * DAY) / ticks)
        const startMs = START + this.#chance.int(-everyMs, everyMs)
        const least = Math.max(everyMs, (days * DAY) / (ticks * 5))
        const interval = Math.round(least)
        const all: number[] = []
        for (let tick = startMs; tick <= this.#endMs + AFTER_MS; tick += interval) all.push(tick)
        plan({ everyMs: interval, startMs }, all)
      }
    }
    this.#ticks = [...this.#planned.values()].flatMap(({ ticks }) => ticks).sort((a, b) => a - b)
  }

  // --- what happens ---

  async #step(untilMs: number): Promise<void> {
    const { now } = this.#bench
    // Mostly to the next tick, and at times further than several ticks.
    const jump = this.#chance.hit(0.8) ? this.#nextTick(now) - now : this.#chance.skewed(2 * DAY)
    const passed = Math.max(1, Math.min(Math.max(jump, this.#options.stepMs ?? 0), untilMs - now))
    await this.#bench.pass(passed)
    await this.#settle()
    if (this.#chance.hit(0.02)) await this.#pause()
    if (this.#chance.hit(0.01)) await this.#delete()
    if (this.#chance.hit(0.01)) await this.#fill()
    if (this.#fullUntilMs > 0 && this.#bench.now >= this.#fullUntilMs) await this.#makeRoom()
    if (this.#chance.hit(0.02)) await this.#collect()
  }

  // The broker dies in or after a turn, and before its entries are durable, or when some of them are.
  async #crash(): Promise<void> {
    const bench = this.#bench
    this.counts.crashes++
    bench.now = Math.min(this.#nextTick(bench.now), this.#endMs)
    bench.broker.turn.tick()
    for (let turn = this.#chance.int(0, 2); turn >= 0; turn--) {
      bench.endTurns()
      for (let wait = this.#chance.int(0, 6); wait > 0; wait--) await Promise.resolve()
      if (this.#chance.hit(0.3)) await new Promise(setImmediate)
    }
    await bench.crash()
    if (this.#chance.hit(0.5)) bench.now += this.#chance.skewed(DAY)
    await this.#settle()
  }

  async #pause(): Promise<void> {
    const bench = this.#bench
    const planned = this.#chance.pick([...this.#planned.values()])
    // A pause also ends a tick that was refused.
    if (planned.endMs < Infinity || this.#fullUntilMs > 0) return
    this.counts.pauses++
    const fromMs = bench.now
    schedule(bench, planned.name, { paused: true })
    await bench.settle()
    await bench.pass(this.#chance.skewed(3 * DAY))
    if (this.#chance.hit(0.2)) await bench.crash()
    await this.#settle()
    schedule(bench, planned.name, { paused: false })
    planned.pauses.push([fromMs, bench.now])
    await this.#settle()
  }

  async #delete(): Promise<void> {
    const planned = this.#chance.pick([...this.#planned.values()])
    if (planned.endMs < Infinity || this.#fullUntilMs > 0) return
    this.counts.deletions++
    planned.endMs = this.#bench.now
    this.#bench.broker.turn.begin()
    this.#bench.broker.schedules.delete(planned.name)
    await this.#settle()
  }

  async #fill(): Promise<void> {
    if (this.#fullUntilMs > 0) return
    this.counts.refusals++
    this.#fullUntilMs = this.#bench.now + this.#chance.skewed(4 * DAY)
    await this.#collect()
    this.#bench.ensure({ maxMessages: 1 }, ALL)
    await this.#bench.settle()
  }

  async #makeRoom(): Promise<void> {
    this.#fullUntilMs = 0
    this.#bench.ensure({ maxMessages: 0, overflow: 'reject' }, ALL)
    for (let minute = 0; minute < 3; minute++) await this.#bench.pass(MINUTE)
    await this.#settle()
  }

  async #settle(): Promise<void> {
    await this.#bench.settle()
    this.#settledMs.push(this.#bench.now)
  }

  // Takes the messages out of the queues.
  async #collect(): Promise<void> {
    for (const name of [ALL, FEW]) await this.#collectFrom(name)
    await this.#bench.settle()
  }

  async #collectFrom(name: QueueName): Promise<void> {
    const bench = this.#bench
    for (const { name: from, tickMs, atMs } of await published(bench, name))
      this.#planned.get(from)!.fired.push({ tickMs, atMs })
    bench.broker.turn.begin()
    bench.broker.catalog.purge(name)
  }

  // --- what must be true ---

  #check({ name, missed, ticks, pauses, endMs, fired }: Planned): void {
    const known = new Set(ticks)
    const seen = new Set<number>()
    let last = 0
    for (const { tickMs, atMs } of fired) {
      const what = `${name} (${missed}) fired at ${time(atMs)} for ${time(tickMs)}`
      if (seen.has(tickMs)) throw new Error(`${what}, a second time`)
      if (!known.has(tickMs)) throw new Error(`${what}, which is no tick`)
      if (tickMs <= last) throw new Error(`${what}, after ${time(last)}`)
      if (atMs < tickMs) throw new Error(`${what}, too early`)
      if (missed === 'skip' && atMs - tickMs > LATE_MS) throw new Error(`${what}, too late`)
      if (atMs > tickMs + 1_000) this.counts.late++
      seen.add(tickMs)
      last = tickMs
    }
    this.counts.fired += fired.length
    for (const [at, tickMs] of ticks.entries()) {
      if (tickMs > this.#endMs || tickMs >= endMs) break
      if (seen.has(tickMs)) continue
      if (pauses.some(([fromMs, untilMs]) => tickMs > fromMs && tickMs <= untilMs)) continue
      const handledMs = this.#settledAfter(tickMs)
      const next = ticks[at + 1] ?? Infinity
      const isPassedOver = missed !== 'all' && next <= handledMs
      if (!isPassedOver && !(missed === 'skip' && handledMs - tickMs > LATE_MS))
        throw new Error(`${name} (${missed}) did not fire for ${time(tickMs)}`)
      this.counts.passedOver++
    }
  }

  // The first time from `timeMs` on at which what had fired was durable.
  #settledAfter(timeMs: number): number {
    return firstFrom(this.#settledMs, timeMs)
  }

  #nextTick(timeMs: number): number {
    return firstFrom(this.#ticks, timeMs + 1)
  }
}

// The first time that is not before `timeMs`, in an ascending list.
function firstFrom(times: readonly number[], timeMs: number): number {
  let from = 0
  for (let to = times.length; from < to;) {
    const middle = (from + to) >>> 1
    if (times.at(middle)! < timeMs) from = middle + 1
    else to = middle
  }
  return times.at(from) ?? Infinity
}

function time(ms: number): string {
  return new Date(ms).toISOString()
}

async function run(seed: number): Promise<YearCounts> {
  try {
    return await new ScheduleYear(new Chance(seed), { schedules: 20, days: 40, crashes: 20, ticks: 10 }).run()
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
  }
}

describe('a simulated year', () => {
  it('fires each tick exactly once, or as `missed` says', { timeout: TIMEOUT_MS }, async () => {
    const total: Record<string, number> = {}
    const seeds = seedsFrom(1, 1, 200)
    for (const seed of seeds)
      for (const [what, count] of Object.entries(await run(seed))) total[what] = (total[what] ?? 0) + count
    if (ONE_SEED !== undefined) return
    expect(total['fired']).toBeGreaterThan(100 * seeds.length)
    expect(total['late']).toBeGreaterThan(10 * seeds.length)
    expect(total['passedOver']).toBeGreaterThan(2 * seeds.length)
    expect(total['crashes']).toBeGreaterThanOrEqual(20 * seeds.length)
    expect(total['pauses']).toBeGreaterThan(0)
    expect(total['deletions']).toBeGreaterThan(0)
    expect(total['refusals']).toBeGreaterThan(0)
  })

  it.runIf(IS_LONG)('has room for 10,000 schedules and 200 crashes', { timeout: TIMEOUT_MS }, async () => {
    const options = {
      schedules: 10_000,
      days: 365,
      crashes: 200,
      stepMs: 3_600_000,
      bench: { segmentBytes: 32 << 20 },
    }
    const counts = await new ScheduleYear(new Chance(1), options).run()
    expect(counts.crashes).toBeGreaterThanOrEqual(200)
    expect(counts.fired).toBeGreaterThan(100_000)
  })
})

/** Each replaces a method with a wrong one. */
const MISTAKES: Readonly<Record<string, () => void>> = {
  'the fact of a tick is in an entry before that of its batch': () => {
    const before = Object.getOwnPropertyDescriptor(Writer.prototype, 'writeFacts')!
      .value as Writer['writeFacts']
    vi.spyOn(Writer.prototype, 'writeFacts').mockImplementation(function (this: Writer, queueId, facts) {
      const isFired = facts.bytes[0] === FACT.fired
      before.call(this, queueId, facts)
      if (isFired) this.mark(BATCH_TYPE.facts, 0, 0, new Uint8Array(0))
    })
  },
  'the tick of a fact is the time of firing': () => {
    const before = Object.getOwnPropertyDescriptor(FactBuffer.prototype, 'fired')!
      .value as FactBuffer['fired']
    vi.spyOn(FactBuffer.prototype, 'fired').mockImplementation(function (
      this: FactBuffer,
      id,
      tickMs,
      count,
    ) {
      before.call(this, id, tickMs + 12 * 3_600_000, count)
    })
  },
  'the fact of a tick is not written': () => {
    vi.spyOn(FactBuffer.prototype, 'fired').mockImplementation(() => {})
  },
  'a tick that fired does not change the page of its schedule': () => {
    vi.spyOn(Definitions.prototype, 'fired').mockImplementation(function (_definition, _tickMs, _count) {})
  },
}

describe('a planted mistake is found', () => {
  afterEach(() => vi.restoreAllMocks())

  it.each(Object.keys(MISTAKES))('%s', { timeout: TIMEOUT_MS }, async (name) => {
    MISTAKES[name]!()
    let found: unknown
    for (let seed = 1; seed <= 10 && found === undefined; seed++)
      found = await run(seed).then(
        () => undefined,
        (error: unknown) => error,
      )
    expect(String(found)).toMatch(/seed \d+: s\d+ \((all|once|skip)\) (fired|did not fire)/)
  })
})
