/**
 * Compares the answer to EXPLAIN with the model's own reasons, when no turn is left. A consumer's reasons are compared only
 * as a whole: the broker estimates the size of a message, and so may take it for too large, or not.
 */
import { queueName, type ExplainCode, type ExplainReason } from '@sluice/protocol'
import { OPERATOR, type Bench } from './bench.js'
import type { Model } from './model.js'
import { same } from './same.js'
import { Difference, type ModelMessage, type ModelQueue } from './state.js'

const OF_CONSUMERS: ReadonlySet<ExplainCode> = new Set<ExplainCode>([
  'single',
  'noCredit',
  'limit',
  'suspect',
  'alone',
  'connection',
])

type Expected = Omit<ExplainReason, 'consumer'>

export async function compareExplain(bench: Bench, name: string, offset: number): Promise<void> {
  await bench.endTurn()
  bench.begin()
  const { model } = bench
  const { operator, explainer } = bench.broker
  const request = { name: queueName(name), offset }
  const reading = operator.whenRead({ ...request, id: undefined }, OPERATOR, () => explainer.explain(request))
  const { reasons } = await bench.wait(Promise.resolve(reading))
  const queue = model.queue(name)
  const what = `reasons for message ${offset} of ${name}`
  const message = queue.messages.find((one) => one.offset === offset)
  const expected = message === undefined ? ofMissing(queue, offset) : ofMessage(model, queue, message)
  const isWaiting = message?.state === 'ready' || message?.state === 'scheduled'
  if (isWaiting && !model.stale(queue).includes(message)) expected.push(...ofQueue(model, queue))
  const own = reasons.filter(
    ({ code }) => !OF_CONSUMERS.has(code) && code !== 'line' && code !== 'deliverable',
  )
  same(what, own.map(comparable), expected)
  for (const { code } of reasons) bench.count(`explained: ${code}`)
  if (!isWaiting || expected[0]?.code === 'expired') return
  const takers = queue.subscriptions.filter((subscription) => model.hasRoom(subscription))
  const codes = reasons.map(({ code }) => code)
  const hasReasons = codes.some((code) => OF_CONSUMERS.has(code))
  if (takers.length === 0 && queue.subscriptions.length > 0 && !hasReasons)
    throw new Difference(`${what}: no consumer takes anything, but the reasons are ${codes.join(', ')}`)
  if (takers.length > 0 && hasReasons && !codes.some((code) => code === 'noCredit' || code === 'alone'))
    throw new Difference(`${what}: a consumer takes messages, but the reasons are ${codes.join(', ')}`)
  const line = reasons.find(({ code }) => code === 'line')
  if (line !== undefined) same(`${what}: the next message`, line.offset, model.head(queue)?.offset)
  if (codes.includes('deliverable') && model.head(queue) !== message)
    throw new Difference(`${what}: it is deliverable, but it is not the next message`)
}

/** Without the values that the model does not know: the id of the consumer, the words of the broker, and which lease it found. */
function comparable(reason: ExplainReason): Expected {
  if (reason.code === 'keyLeased') return { code: 'keyLeased' }
  return Object.fromEntries(
    Object.entries(reason).filter(([name]) => name !== 'consumer' && name !== 'text'),
  ) as unknown as Expected
}

function ofMissing({ next }: ModelQueue, offset: number): Expected[] {
  return offset >= next ? [{ code: 'unpublished', next }] : [{ code: 'gone' }]
}

function ofMessage(model: Model, queue: ModelQueue, message: ModelMessage): Expected[] {
  const { state, attempts, lineMs: untilMs, lease, death, diedMs: sinceMs } = message
  if (state === 'dead') {
    return [{ code: 'dead', sinceMs, attempts, death: death! }]
  }
  if (state === 'leased') return [{ code: 'leased', ...holding(message, lease!) }]
  if (model.stale(queue).includes(message))
    return [{ code: 'expired', sinceMs: Math.max(message.expiresMs, untilMs) }]
  if (state === 'ready') return ofKey(queue, message)
  if (untilMs <= model.nowMs) return [{ code: 'due' }]
  return attempts > 0 ? [{ code: 'retry', untilMs, attempts }] : [{ code: 'scheduled', untilMs }]
}

function holding(
  { offset }: ModelMessage,
  { subscription: { client }, atMs: sinceMs }: NonNullable<ModelMessage['lease']>,
): Omit<Expected, 'code'> {
  return { offset, client, sinceMs }
}

function ofKey(queue: ModelQueue, message: ModelMessage): Expected[] {
  const { key } = message.content
  if (key === undefined || queue.line.eligibleSince(message) !== undefined) return []
  const { keyConcurrency, onFail } = queue.options
  const ofThisKey = queue.messages.filter(({ content }) => content.key === key)
  const reasons: Expected[] = []
  const { leased, retrying } = queue.line.keyOf(message)!
  if (leased >= keyConcurrency) reasons.push({ code: 'keyLeased' })
  if (onFail === 'block' && retrying > 0) {
    const { offset, lineMs: untilMs } = ofThisKey.find(
      ({ state, attempts }) => state === 'scheduled' && attempts > 0,
    )!
    reasons.push({ code: 'keyRetry', offset, untilMs })
  }
  const hold = queue.line.holdOf(message)
  if (hold !== undefined)
    reasons.push({ code: hold.isPause ? 'keyPaused' : 'keyRate', untilMs: hold.untilMs })
  const { first, before: count } = queue.line.placeInKey(message)
  if (count > 0) reasons.push({ code: 'keyLine', offset: first.offset, count })
  return reasons
}

function ofQueue(model: Model, queue: ModelQueue): Expected[] {
  const reasons: Expected[] = []
  if (queue.paused) reasons.push({ code: 'paused' })
  if (queue.subscriptions.length === 0) reasons.push({ code: 'noConsumer' })
  const untilMs = model.rateUntilMs(queue)
  if (untilMs !== null) reasons.push({ code: 'queueRate', untilMs })
  return reasons
}
