/**
 * Schedules: creates, changes, lists and deletes them, and publishes a message at each tick. A schedule is a definition
 * (state/definitions.ts): its text has the settings, and its number is the last tick that fired.
 *
 * Invariant: the fact that a tick has fired and the batch that it publishes are in one entry, and the next tick is the
 * first one after the last tick that fired. So each tick fires exactly once, whenever the broker crashes.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  ERRORS,
  LIMITS,
  RECORD_FLAG,
  SCHEDULE_HEADERS,
  SluiceError,
  checkRecordOptions,
  isTopicAddress,
  clipText,
  readRecordOptions,
  recordBytes,
  recordContentType,
  recordFlags,
  recordPayloadAt,
  sealBatch,
  viewBytes,
  writeRecordHead,
  type ContentType,
  type RecordOptions,
  type ScheduleInfo,
  type ScheduleRequest,
  type ScheduleSettings,
} from '@sluice/protocol'
import { FactBuffer, Timer } from '../queue/index.js'
import { DEFINITION, NO_OWNER, type Definition } from '../state/definitions.js'
import type { State } from '../state/state.js'
import { checkAt } from '../state/traits.js'
import type { BatchBytes } from './commands.js'
import type { Intake } from './intake.js'
import type { Registry } from './registry.js'
import { ticksOf, type Ticks } from './schedule-times.js'
import type { SharedIntake } from './shared-intake.js'
import type { Topics } from './topics.js'
import type { Turn } from './turn.js'

/** Maximum number of schedules. Each takes a few KiB of memory for its cron expression. */
export const SCHEDULES_MAX = 10_000
/** Maximum number of messages that the schedules publish in one turn. */
export const FIRED_MAX = 64
/**
 * Number of searches in the calendar after which a turn ends. A schedule that is on time needs two; one that has missed
 * many ticks needs about 40.
 */
export const SEARCHES_MAX = 256
/** A tick is missed if it is late by more than this time, or if a later tick of its schedule is due as well. */
export const LATE_MS = 60_000
/** Pause after a refusal; it doubles with each further refusal of the same tick. */
const RETRY_MS = 1_000
const RETRY_MS_MAX = 60_000
/** Number of ticks to come that a list shows for each schedule. */
const LIST_TICKS = 1

/** The text of a definition, as JSON. */
interface Stored extends Omit<ScheduleSettings, 'record'> {
  readonly name: string
  /** The record in base64. */
  readonly record: string
  readonly paused: boolean
  readonly createdAtMs: number
  /** Ticks up to this time do not fire: the time at which the schedule got its ticks, or was resumed. */
  readonly fromMs: number
}

interface Schedule {
  readonly definition: Definition
  readonly timer: Timer
  stored: Stored
  /** Whether `ticks` and `nextMs` are computed. After a start this takes a while, if there are many schedules. */
  isRead: boolean
  /** Undefined if this broker cannot compute the ticks, for example because it does not know the time zone. */
  ticks: Ticks | undefined
  /** The first tick that has not fired; Infinity if there is none, or if the schedule is paused. */
  nextMs: number
  refusal: Refusal | undefined
}

/** Why a tick that is due has not fired. */
interface Refusal {
  readonly error: SluiceError
  readonly sinceMs: number
  readonly tries: number
}

export interface ScheduleAnswer {
  readonly created: boolean
  readonly changed: boolean
  readonly schedule: ScheduleInfo
}

/** What a publish of the message reached: the offset in its queue, or the number of targets of its topic. */
export interface ScheduleRun {
  readonly offset?: number
  readonly targets?: number
}

export interface SchedulesOptions {
  readonly schedulesMax?: number
  readonly messageBytesMax: number
}

export class Schedules {
  readonly #state: State
  readonly #registry: Registry
  readonly #intake: Intake
  readonly #sharedIntake: SharedIntake
  readonly #topics: Topics
  readonly #turn: Turn
  readonly #schedulesMax: number
  readonly #messageBytesMax: number
  readonly #byName = new Map<string, Schedule>()
  /** Schedules with a tick that is due, or whose ticks are not computed yet. */
  readonly #due = new Set<Schedule>()
  /** Sorted names of all schedules, for `list`; undefined while they must be sorted again. */
  #names: string[] | undefined

  constructor(
    state: State,
    registry: Registry,
    intake: Intake,
    sharedIntake: SharedIntake,
    topics: Topics,
    turn: Turn,
    { schedulesMax = SCHEDULES_MAX, messageBytesMax }: SchedulesOptions,
  ) {
    this.#state = state
    this.#registry = registry
    this.#intake = intake
    this.#sharedIntake = sharedIntake
    this.#topics = topics
    this.#turn = turn
    this.#schedulesMax = schedulesMax
    this.#messageBytesMax = messageBytesMax
    for (const definition of registry)
      if (definition.kind === DEFINITION.schedule)
        this.#due.add(this.#add(definition, JSON.parse(definition.text) as Stored))
  }

  // --- requests ---

  /**
   * Creates the schedule, or changes it if `update` is set. A request without settings only pauses or resumes it.
   * @throws SluiceError SCHEDULE_NOT_FOUND, SCHEDULE_CONFLICT, QUEUE_NOT_FOUND, INVALID_CRON, CRON_NEVER_FIRES,
   * UNKNOWN_TIME_ZONE, AT_IN_THE_PAST, INVALID_DELAY, INVALID_HEADERS, MESSAGE_TOO_LARGE, TOO_MANY_DEFINITIONS,
   * DEFINITION_TOO_LARGE
   */
  ensure({ name, settings, paused, update }: ScheduleRequest): ScheduleAnswer {
    const existing = settings === undefined ? this.#schedule(name) : this.#byName.get(name)
    const before = existing?.stored
    const stored = settings === undefined ? before! : this.#storedOf(name, settings, before, update)
    const isPaused = paused ?? stored.paused
    // Ticks that pass during a pause are not missed.
    const resumes = stored.paused && !isPaused && before !== undefined
    const after = { ...stored, paused: isPaused, fromMs: resumes ? this.#turn.nowMs : stored.fromMs }
    if (existing === undefined) {
      this.#checkNumber()
      const text = JSON.stringify(after)
      const definition = this.#registry.define({
        kind: DEFINITION.schedule,
        owner: NO_OWNER,
        text,
        number: 0,
      })
      const schedule = this.#add(definition, after)
      return { created: true, changed: true, schedule: this.#info(schedule, LIST_TICKS) }
    }
    const text = JSON.stringify(after)
    const changed = text !== existing.definition.text
    if (changed) {
      this.#registry.redefine(existing.definition, text, existing.definition.number)
      existing.stored = after
      this.#read(existing)
    }
    return { created: false, changed, schedule: this.#info(existing, LIST_TICKS) }
  }

  /** The schedule with its message and the next `ticks` ticks. @throws SluiceError SCHEDULE_NOT_FOUND */
  get(name: string, ticks: number): ScheduleInfo {
    const schedule = this.#schedule(name)
    return { ...this.#info(schedule, ticks), record: recordOf(schedule.stored) }
  }

  /** At most `limit` schedules in order of name, after the name `after`. */
  list(after: string, limit: number): { readonly schedules: ScheduleInfo[]; readonly more: boolean } {
    const names = (this.#names ??= [...this.#byName.keys()].sort())
    const found = names.findIndex((name) => name > after)
    const from = found === -1 ? names.length : found
    const page = names.slice(from, from + limit)
    return {
      schedules: page.map((name) => this.#info(this.#schedule(name), LIST_TICKS)),
      more: from + limit < names.length,
    }
  }

  /** Returns how often the schedule fired. @throws SluiceError SCHEDULE_NOT_FOUND */
  delete(name: string): { readonly fired: number } {
    const schedule = this.#schedule(name)
    this.#registry.undefine(schedule.definition)
    this.#byName.delete(name)
    this.#due.delete(schedule)
    this.#turn.arm(schedule.timer, Infinity)
    this.#names = undefined
    return { fired: schedule.definition.fired }
  }

  /**
   * Publishes the message now. This is not a tick, and does not change the schedule.
   * @throws SluiceError SCHEDULE_NOT_FOUND, or the refusal of the target
   */
  run(name: string): ScheduleRun {
    return this.#publish(this.#schedule(name), this.#turn.nowMs, false)
  }

  /** @throws SluiceError SCHEDULE_NOT_FOUND */
  #schedule(name: string): Schedule {
    const schedule = this.#byName.get(name)
    if (schedule !== undefined) return schedule
    throw new SluiceError('SCHEDULE_NOT_FOUND', `There is no schedule ${JSON.stringify(name)}.`)
  }

  /** @throws SluiceError TOO_MANY_DEFINITIONS */
  #checkNumber(): void {
    const { size } = this.#byName
    if (size < this.#schedulesMax) return
    throw new SluiceError(
      'TOO_MANY_DEFINITIONS',
      `There are ${size} schedules; at most ${this.#schedulesMax} are allowed.`,
    )
  }

  // What is stored for these settings. Checks all that differs from `before`. @throws SluiceError
  #storedOf(name: string, settings: ScheduleSettings, before: Stored | undefined, update: boolean): Stored {
    const { nowMs } = this.#turn
    const { to, missed, record } = settings
    const { cron, timeZone, everyMs, atMs } = settings
    const timing = { cron, timeZone, everyMs, startMs: startOf(settings, before, nowMs), atMs }
    const wanted: Wanted = { ...timing, to, missed, record: Buffer.from(record).toString('base64') }
    const fields = Object.keys(wanted) as (keyof Wanted)[]
    const differing = before === undefined ? [] : fields.filter((field) => wanted[field] !== before[field])
    if (before !== undefined && differing.length === 0) return before
    if (before !== undefined && !update) throw conflict(name, before, wanted, differing)
    const isTimed = before === undefined || differing.some((field) => TIMING.includes(field))
    if (isTimed) {
      if (atMs !== undefined) checkAt('`at`', atMs, nowMs)
      ticksOf(timing, nowMs)
    }
    const isNewTarget = before === undefined || differing.includes('to')
    if (isNewTarget && !isTopicAddress(to)) this.#state.queue(to)
    if (before === undefined || differing.includes('record')) this.#checkMessage(name, record)
    return {
      name,
      ...wanted,
      paused: before?.paused ?? false,
      createdAtMs: before?.createdAtMs ?? nowMs,
      // A time that is up to a minute past means now.
      fromMs: isTimed ? Math.min(nowMs, (atMs ?? Infinity) - 1) : before.fromMs,
    }
  }

  // Checks the message with the headers that it will have. @throws SluiceError
  #checkMessage(name: string, record: Uint8Array): void {
    const { bytes, options } = messageOf(name, record, this.#turn.nowMs)
    checkRecordOptions(options)
    this.#intake.checkedFlags(bytes, 0, bytes.length, this.#messageBytesMax)
  }

  #info(schedule: Schedule, count: number): ScheduleInfo {
    if (!schedule.isRead) this.#read(schedule)
    const { definition, stored, ticks, nextMs, refusal } = schedule
    const { name, to, missed, paused, createdAtMs, cron, timeZone, everyMs, startMs, atMs } = stored
    const nextTicksMs: number[] = []
    for (let tick = nextMs; tick < Infinity && nextTicksMs.length < count; tick = ticks!.after(tick))
      nextTicksMs.push(tick)
    return {
      name,
      ...{ cron, timeZone, everyMs, startMs, atMs },
      to,
      missed,
      paused,
      createdAtMs,
      fired: definition.fired,
      lastTickMs: definition.fired === 0 ? null : definition.number,
      nextTicksMs,
      error: refusal === undefined ? null : faultOf(refusal),
    }
  }

  // --- ticks ---

  /** Whether `step` has something to do. */
  get isWanted(): boolean {
    return this.#due.size > 0
  }

  /** Publishes the messages of ticks that are due, within `FIRED_MAX` and `SEARCHES_MAX`; later turns continue. */
  step(): void {
    let left = FIRED_MAX
    let searchesLeft = SEARCHES_MAX
    for (const schedule of this.#due) {
      if (left <= 0 || searchesLeft <= 0) {
        this.#turn.wake()
        return
      }
      left--
      this.#due.delete(schedule)
      const before = schedule.ticks?.searches ?? 0
      // A schedule with another tick that is due is added again, and follows the others.
      if (!schedule.isRead) this.#read(schedule)
      else if (schedule.nextMs <= this.#turn.nowMs) left -= this.#fire(schedule)
      searchesLeft -= (schedule.ticks?.searches ?? 0) - before
    }
  }

  #add(definition: Definition, stored: Stored): Schedule {
    const schedule: Schedule = {
      definition,
      timer: new Timer(() => this.#due.add(schedule)),
      stored,
      isRead: false,
      ticks: undefined,
      nextMs: Infinity,
      refusal: undefined,
    }
    this.#byName.set(stored.name, schedule)
    this.#names = undefined
    return schedule
  }

  // Computes the ticks after the schedule was read or changed.
  #read(schedule: Schedule): void {
    const { stored, definition } = schedule
    schedule.isRead = true
    schedule.refusal = undefined
    schedule.ticks = undefined
    schedule.nextMs = Infinity
    this.#due.delete(schedule)
    try {
      schedule.ticks = ticksOf(stored, stored.fromMs)
      if (!stored.paused) schedule.nextMs = schedule.ticks.after(Math.max(stored.fromMs, definition.number))
    } catch (error) {
      // The definition was valid when it was stored, perhaps by another version with other time zones.
      if (!(error instanceof SluiceError)) throw error
      schedule.refusal = { error, sinceMs: this.#turn.nowMs, tries: 1 }
    }
    this.#arm(schedule, schedule.nextMs)
  }

  #arm(schedule: Schedule, timeMs: number): void {
    const isDue = timeMs <= this.#turn.nowMs
    this.#turn.arm(schedule.timer, isDue ? Infinity : timeMs)
    if (!isDue) return
    this.#due.add(schedule)
    this.#turn.wake()
  }

  // Returns the number of targets besides the first, which is work for the turn.
  #fire(schedule: Schedule): number {
    const { nowMs } = this.#turn
    const { missed } = schedule.stored
    const ticks = schedule.ticks!
    const tickMs = missed === 'all' ? schedule.nextMs : ticks.latest(schedule.nextMs, nowMs)
    if (missed === 'skip' && nowMs - tickMs > LATE_MS) {
      // Nothing is written: after a restart the tick is missed as well.
      schedule.nextMs = ticks.after(tickMs)
      this.#arm(schedule, schedule.nextMs)
      return 0
    }
    let more = 0
    try {
      const { targets = 1 } = this.#publish(schedule, tickMs, true)
      more = Math.max(0, targets - 1)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      const { sinceMs = nowMs, tries = 0 } = schedule.refusal ?? {}
      schedule.refusal = { error, sinceMs, tries: tries + 1 }
      this.#arm(schedule, nowMs + Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** Math.min(tries, 16)))
      return 0
    }
    schedule.refusal = undefined
    schedule.nextMs = ticks.after(tickMs)
    this.#arm(schedule, schedule.nextMs)
    return more
  }

  // Publishes the message with the time of its tick, and records that the tick has fired. `isTick` is false for a message
  // that is published in between. @throws SluiceError; then nothing has changed
  #publish({ stored, definition }: Schedule, tickMs: number, isTick: boolean): ScheduleRun {
    const { name, to } = stored
    const { bytes } = messageOf(name, recordOf(stored), tickMs)
    const batch: BatchBytes = { bytes, at: 0, end: bytes.length }
    const count = definition.fired + 1
    let facts: FactBuffer | undefined
    if (isTick) {
      facts = new FactBuffer()
      facts.fired(definition.id, tickMs, count)
    }
    const run = isTopicAddress(to)
      ? this.#publishToTopic(to, batch, facts)
      : this.#publishTo(to, batch, facts)
    if (run.targets === 0) {
      if (isTick) this.#registry.fired(definition, tickMs, count)
    } else if (isTick) this.#state.definitions.fired(definition, tickMs, count)
    return run
  }

  #publishTo(name: string, batch: BatchBytes, facts: FactBuffer | undefined): ScheduleRun {
    const before = facts === undefined ? undefined : { queue: undefined, facts }
    return { offset: this.#intake.take(this.#state.queue(name), batch, 'new', before).baseOffset }
  }

  #publishToTopic(address: string, batch: BatchBytes, facts: FactBuffer | undefined): ScheduleRun {
    const flags = this.#intake.checkedFlags(batch.bytes, batch.at, batch.end, this.#messageBytesMax)
    const targets = this.#topics.targetsOf(address, batch, flags)
    // The address says that a message without targets is dropped.
    if (targets.length === 0) return { targets: 0 }
    return { targets: this.#sharedIntake.take(targets, batch, 'new', facts).targets }
  }
}

/** The fields of a schedule that can differ from those of a request. */
type Wanted = Pick<Stored, 'cron' | 'timeZone' | 'everyMs' | 'startMs' | 'atMs' | 'to' | 'missed' | 'record'>

const TIMING: readonly (keyof Wanted)[] = ['cron', 'timeZone', 'everyMs', 'startMs', 'atMs']

// An interval without a start begins when the schedule gets this interval.
function startOf(
  { everyMs, startMs }: ScheduleSettings,
  before: Stored | undefined,
  nowMs: number,
): number | undefined {
  if (everyMs === undefined || startMs !== undefined) return startMs
  return before?.everyMs === everyMs ? before.startMs : nowMs
}

function conflict(
  name: string,
  before: Wanted,
  wanted: Wanted,
  differing: readonly (keyof Wanted)[],
): SluiceError {
  const texts = differing.map((field) =>
    field === 'record'
      ? 'its message'
      : `\`${field}\` is ${before[field] ?? 'not set'}, not ${wanted[field] ?? 'unset'}`,
  )
  return new SluiceError(
    'SCHEDULE_CONFLICT',
    `The schedule ${name} exists with other settings: ${texts.join(', ')}.`,
  )
}

function recordOf({ record }: Stored): Uint8Array {
  return Buffer.from(record, 'base64')
}

// A batch of one message: the record with the headers that name the schedule and the tick.
function messageOf(
  name: string,
  record: Uint8Array,
  tickMs: number,
): { readonly bytes: Uint8Array; readonly options: RecordOptions } {
  const stored = readRecordOptions(record, 0)
  const options = {
    ...stored,
    headers: {
      ...stored.headers,
      [SCHEDULE_HEADERS.name]: name,
      [SCHEDULE_HEADERS.tickMs]: String(tickMs),
    },
    replaces: (recordFlags(record, 0) & RECORD_FLAG.replaces) !== 0,
  }
  const payload = viewBytes(record, recordPayloadAt(record, 0), record.length)
  const bytes = new Uint8Array(BATCH_HEADER_BYTES + recordBytes(options, payload.length))
  const contentType = recordContentType(record, 0) as ContentType
  const payloadAt = writeRecordHead(bytes, BATCH_HEADER_BYTES, options, contentType, payload.length)
  bytes.set(payload, payloadAt)
  sealBatch(bytes, 0, bytes.length, { type: BATCH_TYPE.messages, count: 1 })
  return { bytes, options }
}

function faultOf({ error, sinceMs, tries }: Refusal): ScheduleInfo['error'] {
  return {
    code: ERRORS[error.code].number,
    message: clipText(error.message, LIMITS.reasonBytesMax),
    sinceMs,
    tries,
  }
}
