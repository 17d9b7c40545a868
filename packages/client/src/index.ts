/** The client of the Sluice message broker: connect, publish, consume. */
export { connect, createClient } from './connect.js'
export type { Sluice } from './client.js'
export type { MessageIterator } from './stream.js'
export type {
  DeadDeleted,
  DeadLetters,
  DeadListOptions,
  DeadSelection,
  Redriven,
  RedriveOptions,
} from './dead.js'
export { parseDuration } from './duration.js'
export type { Duration } from './duration.js'
export type { SluiceEvents } from './events.js'
export type { Connected, Disconnected, Notice, Reconnecting } from './link.js'
export type { LeaseLoss, LeaseLossReason } from './losses.js'
export { DeadLetter, Retry } from './message.js'
export type { HandlerContext, Message, RetryOptions } from './message.js'
export { queue } from './options.js'
export type {
  BatchConsumeOptions,
  BatchMessage,
  CallOptions,
  ClientOptions,
  ConnectOptions,
  ConsumeOptions,
  MessageOptions,
  MessagesOptions,
  PublishAllOptions,
  PublishAllResult,
  PublishOptions,
  PullOptions,
  Queue,
  QueueDeclaration,
  QueueRef,
  SendOptions,
} from './options.js'
export type { MessagePage, Origin, PeekedMessage } from './peeked.js'
export type { Explanation, Reason } from './explanation.js'
export type {
  ConsumerInfo,
  Due,
  EnsureOptions,
  History,
  HistoryEvent,
  PeekOptions,
  QueueInfo,
  QueueOptions,
  RateLimit,
  Queues,
  QueueSettings,
  Replayed,
  ReplayOptions,
} from './queues.js'
export type {
  ScheduleDetails,
  ScheduleFailure,
  ScheduleInfo,
  ScheduleOptions,
  Schedules,
  ScheduleTiming,
} from './schedules.js'
export type { MessageFilter, MessageRef, Pace } from './selection.js'
export type { StreamMessage } from './read-message.js'
export type { Missed } from './reader.js'
export type { Reply, RequestCall, RequestOptions } from './replies.js'
export type { ReplyOptions, ReplyReceipt } from './responder.js'
export type { Receipt } from './sending.js'
export type { ConsumerWaiting, HandlerFailure } from './session.js'
export type { Resubscribed, SubscribeOptions, Subscriber } from './subscriber.js'
export { topic } from './topics.js'
export type {
  BindOptions,
  Binding,
  BindingSelection,
  Route,
  Routed,
  RoutingOptions,
  Topic,
  TopicBatchOptions,
  TopicPublishAllOptions,
  TopicPublishOptions,
  Topics,
} from './topics.js'
export type { EnsureGroupOptions, GroupInfo, GroupOptions, Groups, GroupSettings } from './stream-groups.js'
export { stream } from './streams.js'
export type {
  EnsureStreamOptions,
  MessageReader,
  ReadFrom,
  ReadOptions,
  Stream,
  StreamInfo,
  StreamOptions,
  Streams,
  StreamSettings,
} from './streams.js'
export type { Transaction } from './transaction.js'
export type { BatchHandler, Handler, Worker } from './worker.js'
export { SluiceError } from '@sluice/protocol'
export type {
  BindingHeaders,
  DeathName,
  Effect,
  ErrorCode,
  ErrorScope,
  ExplainCode,
  HistoryEventName,
  MessageState,
  Progress,
} from '@sluice/protocol'
