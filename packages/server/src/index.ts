/** The Sluice broker, for programs that run it inside a process of their own. */
export type { BrokerStatus } from './broker/broker.js'
export type { Holder } from './state/space.js'
export {
  startServer,
  type DiskReport,
  type MemoryReport,
  type RunningServer,
  type ServerOptions,
} from './server.js'
