/** The Sluice broker, for programs that run it in their own process. */
export type { BrokerStatus } from './broker/broker.js'
export type { Holder } from './state/space.js'
export {
  startServer,
  type DiskReport,
  type MemoryReport,
  type RunningServer,
  type ServerOptions,
} from './server.js'
