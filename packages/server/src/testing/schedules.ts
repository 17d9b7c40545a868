/** Schedules of a bench, and what they published. Tests of schedules use this file. */
import {
  CONTENT_TYPE,
  SCHEDULE_HEADERS,
  readRecordOptions,
  recordBytes,
  scheduleRequest,
  writeRecordHead,
  type PeekPage,
  type PeekRequest,
  type QueueName,
  type RecordOptions,
} from '@sluice/protocol'
import type { ScheduleAnswer } from '../broker/schedules.js'
import { CALLER, Q, type Bench } from './bench.js'

/** Returns the record of a message of a schedule. */
export function recordFor(options: RecordOptions = {}, body = 'tick'): Uint8Array {
  const payload = Buffer.from(body)
  const bytes = new Uint8Array(recordBytes(options, payload.length))
  bytes.set(payload, writeRecordHead(bytes, 0, options, CONTENT_TYPE.text, payload.length))
  return bytes
}

/** Sends SCHEDULE. Without other fields, the message goes to the queue `Q`. */
export function schedule(
  { broker }: Bench,
  name: string,
  fields: Readonly<Record<string, unknown>>,
): ScheduleAnswer {
  broker.turn.begin()
  const isFull = Object.keys(fields).some((field) => field !== 'paused' && field !== 'update')
  return broker.schedules.ensure(
    scheduleRequest({ name, ...(isFull ? { to: Q, record: recordFor() } : {}), ...fields }),
  )
}

export interface Published {
  readonly offset: number
  readonly name: string
  readonly tickMs: number
  /** Time at which the message was published. */
  readonly atMs: number
  readonly options: RecordOptions
}

/** The messages of the queue, in the order of their offsets. */
export async function published(bench: Bench, name: QueueName = Q): Promise<Published[]> {
  const found: Published[] = []
  for (let from: number | undefined = 0; from !== undefined;) {
    bench.broker.turn.begin()
    const request: PeekRequest = { name, state: undefined, from, limit: 1_000, filter: {} }
    const page: PeekPage = await bench.answer(bench.broker.operator.peek(request, CALLER))
    for (const { offset, record, publishedAtMs: atMs } of page.messages) {
      const options = readRecordOptions(record, 0)
      const { [SCHEDULE_HEADERS.name]: schedule = '', [SCHEDULE_HEADERS.tickMs]: tick } =
        options.headers ?? {}
      found.push({ offset, name: schedule, tickMs: Number(tick), atMs, options })
    }
    from = page.next
  }
  return found
}

/** The ticks of the messages in the queue. */
export async function ticks(bench: Bench, name: QueueName = Q): Promise<number[]> {
  return (await published(bench, name)).map(({ tickMs }) => tickMs)
}
