/**
 * The number of crash points of a test: images of a disk after a crash from which a log or a broker recovered, and whose
 * content was compared with what must be there. The reporter prints the sum of a run.
 */
import type { TestContext } from 'vitest'

declare module 'vitest' {
  interface TaskMeta {
    crashPoints?: number
  }
}

export function countCrashPoints({ task }: TestContext, count: number): void {
  task.meta.crashPoints = count
}
