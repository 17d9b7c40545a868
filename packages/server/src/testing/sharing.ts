/** Publishes shared batches, and reads messages that can be told from each other. Tests of shared batches use this file. */
import { queueName, readRecordOptions, recordSize, type QueueName } from '@sluice/protocol'
import type { RecordRange } from '../broker/commands.js'
import type { Delivery, Queue, Subscription } from '../queue/index.js'
import { CALLER, Worker, batchOf, type Bench, type Message } from './bench.js'

export const upTo = (end: number, from = 0): number[] =>
  Array.from({ length: end - from }, (_, at) => from + at)
export const named = (count: number): QueueName[] => upTo(count).map((at) => queueName(`q${at}`))

/** A message that tests can tell from all others. */
export const numbered = (number: number, more: Message = {}): Message => ({
  ...more,
  headers: { number: String(number) },
})
const numberOf = (record: Uint8Array, at = 0): number =>
  Number(readRecordOptions(record, at).headers?.['number'])

/** A target by name. Without ranges it gets all records. */
export interface To {
  readonly name: QueueName
  readonly ranges?: readonly RecordRange[] | undefined
}

export function share(bench: Bench, messages: readonly Message[], targets: readonly To[]): number {
  bench.broker.turn.begin()
  const bytes = batchOf(messages, 0)
  const { sharedIntake } = bench.broker
  const found = targets.map(({ name, ranges }) => ({ queue: queueOf(bench, name), ranges }))
  return sharedIntake.take(found, { bytes, at: 0, end: bytes.length }, 'new').targets
}

export function queueOf(bench: Bench, name: QueueName): Queue {
  return bench.broker.catalog.queue(name)
}

/** Offset and number of every message, as an operator sees them. */
export async function peeked(bench: Bench, name: QueueName): Promise<[number, number][]> {
  const found: [number, number][] = []
  for (let from: number | undefined = 0; from !== undefined;) {
    bench.broker.turn.begin()
    const request = { name, state: undefined, limit: 1_000, filter: {}, from }
    const page: Awaited<ReturnType<Bench['broker']['operator']['peek']>> = await bench.answer(
      bench.broker.operator.peek(request, CALLER),
    )
    for (const { offset, record } of page.messages) found.push([offset, numberOf(record)])
    from = page.next
  }
  return found
}

/** A consumer that also notes the numbers of the messages that it gets. */
class Reader extends Worker {
  readonly numbers: [number, number][] = []

  override deliver(subscription: Subscription, delivery: Delivery): void {
    const { run, count, bytes, start } = delivery
    for (let i = 0, at = start; i < count; i++, at += recordSize(bytes, at))
      this.numbers.push([run.offset + i, numberOf(bytes, at)])
    super.deliver(subscription, delivery)
  }
}

export async function read(bench: Bench, name: QueueName, messages = 60_000): Promise<Reader> {
  bench.broker.turn.begin()
  const reader = new Reader(bench, 'reader')
  const request = { queue: name, messages, bytes: 1 << 26, processingTimeoutMs: undefined }
  reader.subscription = bench.broker.leases.subscribe(request, 1, reader)
  await bench.settle()
  return reader
}

/** Acknowledges all messages and returns their offsets and numbers, in the order of delivery. */
export async function drained(bench: Bench, name: QueueName): Promise<[number, number][]> {
  const reader = await read(bench, name)
  reader.ackAll()
  reader.leave()
  await bench.settle()
  return reader.numbers
}
