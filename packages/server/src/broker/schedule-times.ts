/**
 * The ticks of schedules: the times of a cron expression, of an interval, or one single time. `Schedules` asks for the
 * first tick after a time. Everything here is a function of its arguments: it reads no clock.
 *
 * Invariant: the ticks of a timing are one increasing sequence of times. `after` and `latest` only look at it, so no tick
 * depends on when it is computed, or on which ticks were computed before.
 *
 * When clocks change, a cron expression follows the rule of cron. If it has neither `*` nor a step in seconds, minutes and
 * hours, a local time that is skipped counts as the first time after the gap, and a local time that occurs twice counts
 * once. Otherwise the expression follows the time that passes: every 30 minutes stays every 30 minutes.
 */
import { Cron } from 'croner'
import { SluiceError, shown, type ScheduleTiming } from '@sluice/protocol'

export interface Ticks {
  /** Number of searches in the calendar so far, each of which takes about 0.1 ms. */
  readonly searches: number
  /** The first tick after `timeMs`; Infinity if there is none. */
  after(timeMs: number): number
  /** The last tick that is not after `timeMs`. `fromMs` must be a tick that is not after `timeMs`. */
  latest(fromMs: number, timeMs: number): number
}

/** Five or six fields, or a name such as @daily. Croner accepts more: a year, and a single date. */
const CRON = /^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|\S+(\s+\S+){4,5})$/
/** A name of the IANA database. Some versions of Node also accept an offset such as +02:00. */
const TIME_ZONE = /^[A-Za-z][A-Za-z0-9_+/-]*$/
/** Number of ticks that `latest` tries one by one, because most often one or two ticks are due. */
const STEPS = 4
/** The ticks of a cron expression are whole seconds. */
const SECOND_MS = 1_000

/**
 * The ticks of a timing, of which a cron expression must have one after `fromMs`.
 * @throws SluiceError INVALID_CRON, CRON_NEVER_FIRES, UNKNOWN_TIME_ZONE
 */
export function ticksOf(timing: ScheduleTiming, fromMs: number): Ticks {
  const { cron = '', timeZone = 'UTC', everyMs, startMs = 0, atMs } = timing
  if (everyMs !== undefined) return new IntervalTicks(everyMs, startMs)
  if (atMs !== undefined) return new SingleTick(atMs)
  checkTimeZone(timeZone)
  const ticks = new CronTicks(cron, timeZone)
  if (ticks.after(fromMs) < Infinity) return ticks
  throw new SluiceError(
    'CRON_NEVER_FIRES',
    `The cron expression ${shown(cron)} has no tick: its days do not exist in its months.`,
  )
}

/** @throws SluiceError UNKNOWN_TIME_ZONE */
function checkTimeZone(timeZone: string): void {
  try {
    if (!TIME_ZONE.test(timeZone)) throw new RangeError('not a name')
    Intl.DateTimeFormat('en', { timeZone })
  } catch (cause) {
    throw new SluiceError(
      'UNKNOWN_TIME_ZONE',
      `\`timeZone\` is ${shown(timeZone)}; it must be a name of the IANA database, such as Europe/Berlin or UTC.`,
      { cause },
    )
  }
}

class CronTicks implements Ticks {
  searches = 0
  readonly #cron: Cron

  /** @throws SluiceError INVALID_CRON */
  constructor(cron: string, timezone: string) {
    try {
      if (!CRON.test(cron))
        throw new TypeError('it must have five or six fields, or be a name such as @daily')
      this.#cron = new Cron(cron, {
        mode: '5-or-6-parts',
        fixedTimeRule: 'no-wildcard',
        timezone,
        paused: true,
      })
    } catch (error) {
      throw new SluiceError('INVALID_CRON', `\`cron\` is ${shown(cron)}: ${whyOf(error)}.`, { cause: error })
    }
  }

  after(timeMs: number): number {
    this.searches++
    return this.#cron.nextRun(new Date(timeMs))?.getTime() ?? Infinity
  }

  // A search whose time depends on the logarithm of the number of ticks, because a schedule of one second can have
  // missed millions.
  latest(fromMs: number, timeMs: number): number {
    let tick = fromMs
    for (let step = 0; step < STEPS; step++) {
      const next = this.after(tick)
      if (next > timeMs) return tick
      tick = next
    }
    // No tick is after `end` and not after `timeMs`.
    let end = timeMs
    for (let span = SECOND_MS; timeMs - span > tick; span *= 2) {
      const found = this.after(timeMs - span)
      if (found <= timeMs) {
        tick = found
        break
      }
      end = timeMs - span
    }
    while (end - tick > SECOND_MS) {
      const middle = Math.floor((tick + end) / 2)
      const found = this.after(middle)
      if (found > timeMs) end = middle
      else tick = found
    }
    const next = this.after(tick)
    return next > timeMs ? tick : next
  }
}

class IntervalTicks implements Ticks {
  readonly searches = 0
  readonly #everyMs: number
  readonly #startMs: number

  constructor(everyMs: number, startMs: number) {
    this.#everyMs = everyMs
    this.#startMs = startMs
  }

  after(timeMs: number): number {
    return timeMs < this.#startMs ? this.#startMs : this.#floor(timeMs) + this.#everyMs
  }

  latest(_fromMs: number, timeMs: number): number {
    return this.#floor(timeMs)
  }

  // The last tick that is not after `timeMs`, which must not be before the start.
  #floor(timeMs: number): number {
    return timeMs - ((timeMs - this.#startMs) % this.#everyMs)
  }
}

class SingleTick implements Ticks {
  readonly searches = 0
  readonly #atMs: number

  constructor(atMs: number) {
    this.#atMs = atMs
  }

  after(timeMs: number): number {
    return timeMs < this.#atMs ? this.#atMs : Infinity
  }

  latest(): number {
    return this.#atMs
  }
}

// Croner begins its messages with the name of its class.
function whyOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return text.replace(/^\w+: /, '').replace(/\.$/, '')
}
