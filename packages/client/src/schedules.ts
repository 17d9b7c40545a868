/**
 * Schedules at the broker: creates, changes, lists, pauses, runs and deletes them. The message of a schedule is encoded
 * here, and the broker publishes it at each tick.
 */
import {
  errorCode,
  LIMITS,
  OP,
  readRecordOptions,
  checkRecords,
  shown,
  SluiceError,
  topicAddress,
  topicName,
  type ErrorCode,
  type Missed,
  type RecordOptions,
} from '@sluice/protocol'
import { durationMs, type Duration } from './duration.js'
import {
  onlyKnown,
  queueOf,
  recordOptions,
  timeMs,
  whole,
  type CallOptions,
  type MessageOptions,
  type QueueRef,
} from './options.js'
import { NO_HEADERS, recordBody } from './records.js'
import { RESULT, type Body, type Repeat, type Requests } from './requests.js'
import { checkBody } from './schema.js'
import { CALL_OPTIONS, malformed, withoutUndefined } from './selection.js'
import { isTopic, type Topic } from './topics.js'

/** When a schedule is due: a cron expression, an interval, or a single time. */
export type ScheduleTiming =
  | {
      /** Five fields (minute, hour, day, month, weekday), six with seconds first, or a name such as `@daily`. */
      readonly cron: string
      /** Time zone of the expression, a name of the IANA database. Default `'UTC'`. */
      readonly timeZone?: string
    }
  | {
      /** The interval between two ticks, from one second. */
      readonly every: Duration
      /** Ticks are at this time and at whole intervals after it. Default: the time at which the schedule gets its interval. */
      readonly start?: Date | number
    }
  | {
      /** The only tick; a number is milliseconds since the epoch. */
      readonly at: Date | number
    }

/** Options of `schedules.ensure`: when, where to, and what. */
export type ScheduleOptions<Input = unknown> = ScheduleTiming &
  Omit<MessageOptions, 'delay' | 'at'> & {
    /** The queue or topic to which the message is published. */
    readonly to: QueueRef<Input, unknown> | Topic<Input, unknown>
    readonly body: Input
    /**
     * What happens to ticks that are more than a minute late, or that a later tick has overtaken: `'skip'`: they do not
     * fire. `'once'`: one message, for the latest of them. `'all'`: a message for each. Default `'once'`.
     */
    readonly missed?: Missed
    /** Pauses or resumes the schedule. Default: unchanged; a new schedule is not paused. */
    readonly paused?: boolean
    /** For a topic: what happens when nothing matches. `'drop'`: the tick has no effect. `'refuse'`: it is tried again. Default `'refuse'`. */
    readonly unroutable?: 'refuse' | 'drop'
    /** Changes a schedule that exists with other settings, instead of rejecting with SCHEDULE_CONFLICT. Default false. */
    readonly update?: boolean
  }

/** Why a tick that is due has not fired yet; the broker tries it again. */
export interface ScheduleFailure {
  /** Undefined if this version of the client does not know the code. */
  readonly code: ErrorCode | undefined
  readonly message: string
  /** Time of the first failed attempt, and number of attempts. */
  readonly since: Date
  readonly tries: number
}

/** The state of a schedule at the time of the call. */
export interface ScheduleInfo {
  readonly name: string
  readonly cron?: string
  readonly timeZone?: string
  /** The interval in milliseconds. */
  readonly every?: number
  readonly start?: Date
  readonly at?: Date
  /** Name of the queue, or the address of a topic: `#` and its name. */
  readonly to: string
  readonly missed: Missed
  readonly paused: boolean
  readonly createdAt: Date
  /** Number of ticks that fired, and the last one of them. */
  readonly fired: number
  readonly lastTick: Date | null
  /** The ticks to come; a list has only the first one. Empty if the schedule is paused or has ended. */
  readonly nextTicks: Date[]
  readonly error: ScheduleFailure | null
}

/** A schedule with its message. */
export interface ScheduleDetails<Body = unknown> extends ScheduleInfo {
  readonly message: {
    readonly body: Body
    readonly id: string | undefined
    readonly key: string | undefined
    readonly priority: number
    /** In milliseconds. */
    readonly ttl: number | undefined
    readonly headers: Readonly<Record<string, string>>
  }
}

const MESSAGE_FIELDS = ['id', 'onDuplicate', 'key', 'priority', 'ttl', 'headers'] as const
const ENSURE_OPTIONS = [
  ...['cron', 'timeZone', 'every', 'start', 'at', 'to', 'body', 'missed', 'paused', 'unroutable', 'update'],
  ...MESSAGE_FIELDS,
]

/**
 * `sluice.schedules`. Every call may reject with INVALID_NAME, TIMEOUT, ABORTED or CLOSED, besides the errors that its own
 * description names.
 */
export class Schedules {
  readonly #requests: Requests
  readonly #record: (body: unknown, options: RecordOptions | undefined) => Uint8Array

  /** @internal */
  constructor(requests: Requests, record: (body: unknown, options: RecordOptions | undefined) => Uint8Array) {
    this.#requests = requests
    this.#record = record
  }

  /**
   * Creates the schedule if it does not exist. If it exists, all settings are compared; one that is not set counts as its
   * default.
   *
   * @param name Like the name of a queue.
   * @throws SluiceError SCHEDULE_CONFLICT when the schedule exists with other settings and `update` is not true;
   * INVALID_CRON, CRON_NEVER_FIRES, UNKNOWN_TIME_ZONE, INVALID_INTERVAL, AT_IN_THE_PAST; QUEUE_NOT_FOUND of `to`;
   * INVALID_BODY, MESSAGE_TOO_LARGE and the errors of invalid message options; TOO_MANY_DEFINITIONS
   * @example
   * await sluice.schedules.ensure('nightly', { cron: '0 3 * * *', timeZone: 'Europe/Berlin', to: 'reports', body: { kind: 'daily' } })
   * await sluice.schedules.ensure('often', { every: '10m', to: 'cleanup', body: null })
   */
  async ensure<Input>(
    name: string,
    options: ScheduleOptions<Input>,
    call?: CallOptions,
  ): Promise<{ readonly created: boolean; readonly changed: boolean; readonly schedule: ScheduleInfo }> {
    onlyKnown('schedules.ensure', options, ENSURE_OPTIONS)
    const { to, body, missed, paused, update } = options
    const target = isTopic(to) ? to : queueOf(to)
    const message = messageOptions(options)
    if (target.schema !== undefined) await checkBody(target.schema, body, 'body')
    const record = this.#record(body, message)
    const request = {
      ...timingFields(options),
      to: addressOf(target, options),
      record,
      missed,
      paused,
      update,
    }
    return this.#change(name, withoutUndefined(request), call)
  }

  /** Stops the ticks until `resume`. Ticks that pass in the meantime do not fire later. @throws SluiceError SCHEDULE_NOT_FOUND */
  async pause(name: string, call?: CallOptions): Promise<{ readonly changed: boolean }> {
    const { changed } = await this.#change(name, { paused: true }, call)
    return { changed }
  }

  /** Ends a pause. @throws SluiceError SCHEDULE_NOT_FOUND */
  async resume(name: string, call?: CallOptions): Promise<{ readonly changed: boolean }> {
    const { changed } = await this.#change(name, { paused: false }, call)
    return { changed }
  }

  async #change(
    name: string,
    fields: Body,
    call: CallOptions | undefined,
  ): Promise<{ readonly created: boolean; readonly changed: boolean; readonly schedule: ScheduleInfo }> {
    const { created, changed, schedule } = await this.#call(OP.SCHEDULE, { name, ...fields }, 'again', call)
    if (typeof created !== 'boolean' || typeof changed !== 'boolean') throw malformed('SCHEDULE')
    return { created, changed, schedule: scheduleInfo('SCHEDULE', schedule) }
  }

  /**
   * Resolves with a schedule, its message and its next ticks.
   *
   * @param options `ticks`: the number of ticks to come, up to 100. Default 5.
   * @throws SluiceError SCHEDULE_NOT_FOUND
   */
  async get<Output = unknown>(
    name: string,
    options: { readonly ticks?: number } = {},
    call?: CallOptions,
  ): Promise<ScheduleDetails<Output>> {
    onlyKnown('schedules.get', options, ['ticks'])
    const ticks = options.ticks === undefined ? undefined : whole('ticks', options.ticks, 0, LIMITS.ticksMax)
    const { schedule } = await this.#call(OP.SCHEDULES, withoutUndefined({ name, ticks }), 'again', call)
    const info = scheduleInfo('SCHEDULES', schedule)
    return {
      ...info,
      message: messageOf((schedule as Body & { readonly record?: unknown }).record),
    } as ScheduleDetails<Output>
  }

  /** Resolves with all schedules, ordered by name, each with its next tick. The deadline applies to each page. */
  async list(call?: CallOptions): Promise<ScheduleInfo[]> {
    const all: ScheduleInfo[] = []
    let body: Body = {}
    for (;;) {
      const { schedules, more } = await this.#call(OP.SCHEDULES, body, 'again', call)
      if (!Array.isArray(schedules)) throw malformed('SCHEDULES')
      for (const schedule of schedules) all.push(scheduleInfo('SCHEDULES', schedule))
      if (more !== true) return all
      const after = all.at(-1)?.name
      // A page without a new schedule would make this loop endless.
      if (schedules.length === 0 || after === undefined || after === body['after'])
        throw malformed('SCHEDULES')
      body = { after }
    }
  }

  /**
   * Deletes the schedule; messages that it has published stay. Resolves with the number of ticks that fired.
   * @throws SluiceError SCHEDULE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  async delete(name: string, call?: CallOptions): Promise<{ readonly fired: number }> {
    const { fired } = await this.#call(OP.UNSCHEDULE, { name }, 'once', call)
    return { fired: wholeIn('UNSCHEDULE', fired) }
  }

  /**
   * Publishes the message now, even if the schedule is paused. Its ticks stay as they are. Resolves with the `offset` of the
   * message, or with the number of `targets` of a topic.
   * @throws SluiceError SCHEDULE_NOT_FOUND, the refusal of the target; CONNECTION_LOST with `outcome: 'unknown'`
   */
  async runNow(
    name: string,
    call?: CallOptions,
  ): Promise<{ readonly offset: number } | { readonly targets: number }> {
    const { offset, targets } = await this.#call(OP.RUN_SCHEDULE, { name }, 'once', call)
    if (offset === undefined) return { targets: wholeIn('RUN_SCHEDULE', targets) }
    return { offset: wholeIn('RUN_SCHEDULE', offset) }
  }

  async #call(opcode: number, body: Body, repeat: Repeat, call: CallOptions | undefined): Promise<Body> {
    if (call !== undefined) onlyKnown('schedules', call, CALL_OPTIONS)
    return this.#requests.send(opcode, body, repeat, call, RESULT)
  }
}

function messageOptions(options: ScheduleOptions): RecordOptions | undefined {
  const { id, onDuplicate, key, priority, ttl, headers } = options
  const given = withoutUndefined({ id, onDuplicate, key, priority, ttl, headers })
  return recordOptions(given, MESSAGE_FIELDS)
}

/** @throws SluiceError INVALID_INTERVAL, INVALID_DELAY, INVALID_ARGUMENT */
function timingFields(options: ScheduleOptions): Body {
  const { cron, timeZone, every, start, at } = options as {
    readonly cron?: string
    readonly timeZone?: string
    readonly every?: Duration
    readonly start?: Date | number
    readonly at?: Date | number
  }
  return {
    cron,
    timeZone,
    everyMs: every === undefined ? undefined : durationMs(every, 'every', 'INVALID_INTERVAL'),
    startMs: start === undefined ? undefined : timeMs('start', start, 'INVALID_ARGUMENT'),
    atMs: at === undefined ? undefined : timeMs('at', at, 'INVALID_DELAY'),
  }
}

/** @throws SluiceError INVALID_ARGUMENT, OPTION_CONFLICT */
function addressOf(
  target: { readonly name: string },
  { unroutable }: { readonly unroutable?: 'refuse' | 'drop' },
): string {
  if (unroutable !== undefined && unroutable !== 'refuse' && unroutable !== 'drop') {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`unroutable\` is ${shown(unroutable)}; it must be "refuse" or "drop".`,
    )
  }
  if (isTopic(target)) return topicAddress(topicName(target.name), unroutable === 'drop')
  if (unroutable === undefined) return target.name
  throw new SluiceError('OPTION_CONFLICT', '`unroutable` has no effect: the schedule publishes to a queue.')
}

function scheduleInfo(frame: string, value: unknown): ScheduleInfo {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const {
    name,
    cron,
    timeZone,
    everyMs,
    startMs,
    atMs,
    to,
    missed,
    paused,
    createdAtMs,
    fired,
    lastTickMs,
    nextTicksMs,
    error,
  } = value as Body
  if (typeof name !== 'string' || !Array.isArray(nextTicksMs)) throw malformed(frame)
  const date = (ms: unknown): Date => new Date(wholeIn(frame, ms))
  return withoutUndefined({
    name,
    cron,
    timeZone,
    every: everyMs,
    start: startMs === undefined ? undefined : date(startMs),
    at: atMs === undefined ? undefined : date(atMs),
    to,
    missed,
    paused,
    createdAt: date(createdAtMs),
    fired: wholeIn(frame, fired),
    lastTick: lastTickMs === null ? null : date(lastTickMs),
    nextTicks: nextTicksMs.map(date),
    error: error === null ? null : failureOf(frame, error),
  }) as unknown as ScheduleInfo
}

function failureOf(frame: string, value: unknown): ScheduleFailure {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const { code, message, sinceMs, tries } = value as Body
  return {
    code: errorCode(wholeIn(frame, code)),
    message: String(message),
    since: new Date(wholeIn(frame, sinceMs)),
    tries: wholeIn(frame, tries),
  }
}

function messageOf(record: unknown): ScheduleDetails['message'] {
  if (
    !(record instanceof Uint8Array) ||
    typeof checkRecords(record, 0, record.length, 1, LIMITS.scheduleBytesMax) !== 'number'
  )
    throw malformed('SCHEDULES')
  const { id, key, priority = 0, ttlMs, headers = NO_HEADERS } = readRecordOptions(record, 0)
  return { body: recordBody(record, 0), id, key, priority, ttl: ttlMs, headers }
}

function wholeIn(frame: string, value: unknown): number {
  if (!Number.isSafeInteger(value)) throw malformed(frame)
  return value as number
}
