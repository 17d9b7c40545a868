/**
 * Requests about schedules, and their answers.
 *
 * SCHEDULE { name, cron | everyMs | atMs, timeZone?, startMs?, to, record, missed?, paused?, update? } → { created,
 * changed, schedule }. SCHEDULE { name, paused } only pauses or resumes, with the same answer. SCHEDULES { name, ticks? } →
 * { schedule }. SCHEDULES { after? } → { schedules, more }. UNSCHEDULE { name } → { fired }. RUN_SCHEDULE { name } → { offset }
 * for a queue, or { targets } for a topic.
 *
 * `record` is the message as one record, with its options and its payload. The broker adds the headers in SCHEDULE_HEADERS.
 */
import { textBytes } from './bytes.js'
import { SluiceError, shown } from './errors.js'
import { LIMITS } from './limits.js'
import { isTopicAddress, queueName, scheduleName } from './names.js'
import { onlyFields, whole, type Body } from './queues.js'
import {
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  checkRecordOptions,
  checkRecords,
  readRecordOptions,
} from './record.js'
import { readTopicAddress, topicName } from './topics.js'
import { durationText } from './units.js'

/** Headers that the broker adds to the message of a schedule. Both values are text. */
export const SCHEDULE_HEADERS = {
  name: 'sluice-schedule',
  /** Time of the tick, in milliseconds since the epoch. */
  tickMs: 'sluice-tick',
} as const

/** What happens to ticks that could not fire in time. */
export const MISSED = ['skip', 'once', 'all'] as const
export type Missed = (typeof MISSED)[number]

/** When a schedule is due: exactly one of `cron`, `everyMs` and `atMs` is set. */
export interface ScheduleTiming {
  readonly cron?: string | undefined
  /** Time zone of `cron`. */
  readonly timeZone?: string | undefined
  readonly everyMs?: number | undefined
  /** The ticks of `everyMs` are at whole intervals from this time on. */
  readonly startMs?: number | undefined
  readonly atMs?: number | undefined
}

/** What a schedule does. */
export interface ScheduleSettings extends ScheduleTiming {
  /** Address to which the message is published: a queue or a topic. */
  readonly to: string
  readonly missed: Missed
  readonly record: Uint8Array
}

export interface ScheduleRequest {
  readonly name: string
  /** Undefined if the request only pauses or resumes the schedule. */
  readonly settings: ScheduleSettings | undefined
  readonly paused: boolean | undefined
  readonly update: boolean
}

/** Why a tick that is due has not fired yet. */
export interface ScheduleFault {
  /** Number of the error code. */
  readonly code: number
  readonly message: string
  /** Time of the first failed attempt, and number of attempts. */
  readonly sinceMs: number
  readonly tries: number
}

/** A schedule in answers. */
export interface ScheduleInfo extends ScheduleTiming {
  readonly name: string
  readonly to: string
  readonly missed: Missed
  readonly paused: boolean
  readonly createdAtMs: number
  /** Number of ticks that fired, and the last one of them; null if none has fired. */
  readonly fired: number
  readonly lastTickMs: number | null
  /** The ticks to come, the earliest first. Empty if the schedule is paused or has ended. */
  readonly nextTicksMs: readonly number[]
  readonly error: ScheduleFault | null
  /** The message; only in answers about one schedule. */
  readonly record?: Uint8Array
}

/** Selects one schedule, or a page of all. */
export type SchedulesRequest =
  | { readonly name: string; readonly ticks: number }
  | { readonly name: undefined; readonly after: string }

const TIMING_FIELDS = ['cron', 'everyMs', 'atMs'] as const
const SETTINGS_FIELDS = [...TIMING_FIELDS, 'timeZone', 'startMs', 'to', 'record', 'missed'] as const
const TICKS_DEFAULT = 5
const TIME_MS_MAX = 2 ** 48 - 1

/**
 * @throws SluiceError INVALID_ARGUMENT, INVALID_NAME, INVALID_TOPIC, INVALID_INTERVAL, INVALID_CRON, UNKNOWN_TIME_ZONE, OPTION_CONFLICT,
 * MESSAGE_TOO_LARGE, and the errors of an invalid message option
 */
export function scheduleRequest(body: Body): ScheduleRequest {
  onlyFields('SCHEDULE', body, ['name', ...SETTINGS_FIELDS, 'paused', 'update'])
  const name = scheduleName(body['name'])
  const paused = optionalFlag('paused', body['paused'])
  const update = optionalFlag('update', body['update']) === true
  const changesPaused = paused !== undefined && SETTINGS_FIELDS.every((field) => body[field] === undefined)
  return { name, settings: changesPaused ? undefined : settingsOf(body), paused, update }
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function schedulesRequest(body: Body): SchedulesRequest {
  onlyFields('SCHEDULES', body, ['name', 'ticks', 'after'])
  const { name, ticks = TICKS_DEFAULT, after = '' } = body
  if (name !== undefined) return { name: scheduleName(name), ticks: whole('ticks', ticks, LIMITS.ticksMax) }
  if (typeof after !== 'string')
    throw new SluiceError('INVALID_ARGUMENT', '`after` must be the name of a schedule.')
  return { name: undefined, after }
}

/** The body of UNSCHEDULE and RUN_SCHEDULE. @throws SluiceError INVALID_ARGUMENT, INVALID_NAME */
export function scheduleNameRequest(frame: string, body: Body): string {
  onlyFields(frame, body, ['name'])
  return scheduleName(body['name'])
}

function settingsOf(body: Body): ScheduleSettings {
  const { to, missed = 'once' } = body
  if (!(MISSED as readonly unknown[]).includes(missed)) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`missed\` is ${shown(missed)}; it must be one of ${MISSED.join(', ')}.`,
    )
  }
  return {
    ...timingOf(body),
    to: addressOf(to),
    missed: missed as Missed,
    record: recordOf(body['record']),
  }
}

function addressOf(to: unknown): string {
  if (typeof to !== 'string' || !isTopicAddress(to)) return queueName(to)
  topicName(readTopicAddress(to).name)
  return to
}

function timingOf({ cron, everyMs, atMs, timeZone, startMs }: Body): ScheduleTiming {
  const given = [cron, everyMs, atMs].filter((value) => value !== undefined)
  if (given.length !== 1) {
    throw new SluiceError(
      given.length === 0 ? 'INVALID_ARGUMENT' : 'OPTION_CONFLICT',
      'A schedule has exactly one of a cron expression, an interval, and a time.',
    )
  }
  if (timeZone !== undefined && cron === undefined)
    throw new SluiceError('OPTION_CONFLICT', '`timeZone` has no effect without a cron expression.')
  if (startMs !== undefined && everyMs === undefined)
    throw new SluiceError('OPTION_CONFLICT', '`start` has no effect without an interval.')
  if (everyMs !== undefined) {
    return {
      everyMs: intervalOf(everyMs),
      startMs: startMs === undefined ? undefined : whole('startMs', startMs, TIME_MS_MAX),
    }
  }
  if (atMs !== undefined) return { atMs: whole('atMs', atMs, TIME_MS_MAX) }
  return {
    cron: shortText('INVALID_CRON', 'cron', cron, LIMITS.cronBytesMax),
    timeZone: shortText('UNKNOWN_TIME_ZONE', 'timeZone', timeZone ?? 'UTC', LIMITS.timeZoneBytesMax),
  }
}

function intervalOf(everyMs: unknown): number {
  if (
    typeof everyMs === 'number' &&
    Number.isInteger(everyMs) &&
    everyMs >= LIMITS.everyMsMin &&
    everyMs <= LIMITS.delayMsMax
  )
    return everyMs
  throw new SluiceError(
    'INVALID_INTERVAL',
    `The interval is ${typeof everyMs === 'number' ? `${everyMs} ms` : shown(everyMs)}; it must be a whole number of milliseconds from ${durationText(LIMITS.everyMsMin)} to ${durationText(LIMITS.delayMsMax)}.`,
  )
}

function recordOf(record: unknown): Uint8Array {
  if (!(record instanceof Uint8Array))
    throw new SluiceError('INVALID_ARGUMENT', `\`record\` is ${shown(record)}; it must be bytes.`)
  const bytes = record.length - RECORD_HEADER_BYTES
  if (bytes > LIMITS.scheduleBytesMax) {
    throw new SluiceError(
      'MESSAGE_TOO_LARGE',
      `The message of a schedule has ${bytes} bytes; at most ${LIMITS.scheduleBytesMax} are allowed.`,
    )
  }
  const flags = checkRecords(record, 0, record.length, 1, LIMITS.scheduleBytesMax)
  if (typeof flags !== 'number') throw new SluiceError(flags.code, flags.message)
  if (flags & (RECORD_FLAG.delay | RECORD_FLAG.at))
    throw new SluiceError('OPTION_CONFLICT', 'The message of a schedule has neither a `delay` nor an `at`.')
  checkRecordOptions(readRecordOptions(record, 0))
  return record
}

function shortText(
  code: 'INVALID_CRON' | 'UNKNOWN_TIME_ZONE',
  name: string,
  value: unknown,
  bytesMax: number,
): string {
  if (typeof value === 'string' && textBytes(value) <= bytesMax) return value
  throw new SluiceError(code, `\`${name}\` is ${shown(value)}; it must be text of at most ${bytesMax} bytes.`)
}

function optionalFlag(name: string, value: unknown): boolean | undefined {
  if (value === undefined || typeof value === 'boolean') return value
  throw new SluiceError('INVALID_ARGUMENT', `\`${name}\` is ${shown(value)}; it must be true or false.`)
}
