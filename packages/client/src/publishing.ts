/** Publishes several messages to a queue: all of them together, or each by itself. Called by the client. */
import { Feed } from './feed.js'
import {
  SEND_OPTIONS,
  batchRecordOptions,
  batchRecords,
  onlyKnown,
  publishAllConcurrency,
  timeoutOf,
  type BatchMessage,
  type PublishAllOptions,
  type PublishAllResult,
  type Queue,
  type SendOptions,
  type Settings,
} from './options.js'
import { aborted } from './outcomes.js'
import type { Producer } from './producer.js'
import { checkBodies, checkBody } from './schema.js'
import type { Dispatch, Receipt } from './sending.js'

/** Publishes a batch: all of its messages are accepted, or none is. @throws SluiceError */
export async function publishBatchToQueue(
  producer: Producer,
  { name, schema }: Queue,
  messages: readonly BatchMessage[],
  options: SendOptions,
  dispatch: () => Dispatch,
): Promise<Receipt[]> {
  onlyKnown('publishBatch', options, SEND_OPTIONS)
  const records = batchRecords(messages)
  if (schema !== undefined) await checkBodies(schema, records)
  if (records.length === 0) return []
  const { timeoutMs, signal, failsOffline } = dispatch()
  return producer.publishBatch(name, records, timeoutMs, signal, failsOffline)
}

/** Publishes each message that `messages` yields by itself. @throws SluiceError */
export async function publishEach(
  producer: Producer,
  { name, schema }: Queue,
  messages: Iterable<BatchMessage> | AsyncIterable<BatchMessage>,
  options: PublishAllOptions,
  settings: Settings,
): Promise<PublishAllResult> {
  const concurrency = publishAllConcurrency(options, settings.maxInFlight)
  const timeoutMs = timeoutOf(options, settings.timeoutMs)
  const { signal, onProgress } = options
  const publish = async (message: BatchMessage): Promise<Receipt> => {
    const record = batchRecordOptions(message)
    const { body } = message
    if (schema !== undefined) await checkBody(schema, body, 'body')
    return producer.publish(name, body, record, timeoutMs, undefined)
  }
  return new Feed({
    publish,
    concurrency,
    signal,
    aborted: (isUnderWay) => aborted(signal!, isUnderWay),
    onProgress,
    random: Math.random,
  }).run(messages)
}
