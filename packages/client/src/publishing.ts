/** Publishes several messages: all of them together, or each by itself. Called by the client. */
import { Feed } from './feed.js'
import {
  SEND_OPTIONS,
  batchRecordOptions,
  batchRecords,
  onlyKnown,
  publishAllConcurrency,
  timeoutOf,
  type BatchMessage,
  type PublishAllResult,
  type Queue,
  type QueueRef,
  type SendOptions,
  type Settings,
} from './options.js'
import { aborted } from './outcomes.js'
import type { Producer } from './producer.js'
import { checkBodies, checkBody } from './schema.js'
import type { Dispatch, Receipt } from './sending.js'
import { destinationOf, isTopic, sendToTopic, type Topic, type TopicPublishAllOptions } from './topics.js'

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

const PUBLISH_ALL_OPTIONS = ['concurrency', 'onProgress', 'timeout', 'signal']

/** Publishes each message that `messages` yields by itself. @throws SluiceError */
export async function publishEach(
  producer: Producer,
  ref: QueueRef | Topic,
  messages: Iterable<BatchMessage> | AsyncIterable<BatchMessage>,
  options: TopicPublishAllOptions,
  settings: Settings,
): Promise<PublishAllResult> {
  onlyKnown(
    'publishAll',
    options,
    isTopic(ref) ? [...PUBLISH_ALL_OPTIONS, 'unroutable'] : PUBLISH_ALL_OPTIONS,
  )
  const { name, schema } = destinationOf(ref, options)
  const concurrency = publishAllConcurrency(options, settings.maxInFlight)
  const timeoutMs = timeoutOf(options, settings.timeoutMs)
  const { signal, onProgress } = options
  const publish = async (message: BatchMessage): Promise<{ readonly duplicate: boolean }> => {
    const record = batchRecordOptions(message)
    const { body } = message
    if (schema !== undefined) await checkBody(schema, body, 'body')
    if (!isTopic(ref)) return producer.publish(name, body, record, timeoutMs, undefined)
    await sendToTopic(producer, name, body, record, { timeoutMs, signal: undefined, failsOffline: false })
    return { duplicate: false }
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
